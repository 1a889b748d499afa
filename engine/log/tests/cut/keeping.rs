//! What goes is kept, in a place that nobody else uses, or nothing is changed.

use std::io;

use super::*;

const ENOSPC: i32 = 28;

#[test]
fn everything_that_goes_is_kept_and_put_back_by_copying() {
    let (mut b, id) = directory();
    let partition = b.dir().join("partitions").join(id.dir_name());
    // Segments that the broker had written beyond its snapshot, and of which the log lost a batch.
    let open = partition.join(log_name(12));
    let known = fs::read(&open).expect("a segment").len();
    let mut longer = fs::read(&open).expect("a segment");
    longer.extend(vec![7; 3 * BLOCK_BYTES]);
    fs::write(&open, &longer).expect("written");
    let damaged = b.logs[0].frames[3];
    b.overwrite(0, damaged, 0x5a);
    b.store();
    note(b.dir(), "an earlier repair").expect("written");
    let before = contents(b.dir());
    let (_home, kept) = place();
    let plan = plan(b.dir());
    make(b.dir(), &plan, &kept).expect("cut");
    start(&b);

    let copies = contents(&kept);
    let manifest = String::from_utf8(copies[Path::new("MANIFEST")].clone()).expect("text");
    for (name, bytes) in &copies {
        let name = name.to_str().expect("text");
        assert!(name == "MANIFEST" || manifest.contains(name), "{name}");
        if !name.contains(".from-") && name != "MANIFEST" {
            assert!(before[Path::new(name)] == *bytes, "{name}");
        }
    }
    for name in before.keys() {
        let is_kept = copies.contains_key(name);
        let wanted = name.starts_with("wal")
            || name.starts_with("groups")
            || name == Path::new("identity")
            || name == Path::new("repair.log");
        assert_eq!(is_kept, wanted, "{name:?}");
    }
    let name = open.strip_prefix(b.dir()).expect("below");
    let behind = format!("{}.from-{known}", name.display());
    assert!(copies[Path::new(&behind)] == longer[known..]);
    let written: usize = copies.values().map(Vec::len).sum();
    assert!((1..=written as u64).contains(&plan.keep_bytes));
}

#[test]
fn a_full_disk_while_keeping_changes_nothing_and_leaves_no_copies() {
    for is_there in [false, true] {
        for changes in 0.. {
            let (mut b, _) = directory();
            let damaged = b.logs[0].frames[20];
            b.overwrite(0, damaged, 0x5a);
            b.store();
            let plan = plan(b.dir());
            let before = contents(b.dir());
            let (home, kept) = place();
            if is_there {
                fs::create_dir_all(&kept).expect("made");
            }
            let (left, at) = (Cell::new(changes), kept.clone());
            let watcher = move |change: Change<'_>| match change {
                Change::Create(path)
                | Change::Write { path, .. }
                | Change::SetLength { path, .. }
                | Change::Sync(path)
                | Change::MakeDirectory(path)
                | Change::SyncDirectory(path)
                    if path.starts_with(&at) =>
                {
                    match left.get() {
                        0 => Err(io::Error::from_raw_os_error(ENOSPC)),
                        n => {
                            left.set(n - 1);
                            Ok(())
                        }
                    }
                }
                _ => Ok(()),
            };
            let Err(refused) = watched(watcher, || make(b.dir(), &plan, &kept)) else {
                assert!(changes > 20, "it was full at each of {changes} changes");
                break;
            };
            assert!(matches!(refused, CutError::Keep(_)), "{refused}");
            assert!(contents(b.dir()) == before, "after {changes} changes");
            assert!(contents(home.path()).is_empty());
            assert_eq!(kept.exists(), is_there, "after {changes} changes");
            assert!(
                !is_there || fs::read_dir(&kept).expect("listed").next().is_none(),
                "after {changes} changes"
            );
        }
    }
}

#[test]
fn a_place_that_somebody_has_used_meanwhile_is_refused_whatever_lies_there() {
    let (mut b, _) = directory();
    let damaged = b.logs[0].frames[20];
    b.overwrite(0, damaged, 0x5a);
    b.store();
    let plan = plan(b.dir());
    let (_home, kept) = place();
    fs::create_dir_all(&kept).expect("made");
    fs::write(kept.join("notes"), "theirs").expect("written");
    let before = contents(b.dir());
    let refused = make(b.dir(), &plan, &kept).expect_err("used");
    assert!(matches!(refused, CutError::Keep(_)), "{refused}");
    assert!(
        refused.to_string().contains("name another place"),
        "{refused}"
    );
    assert!(contents(b.dir()) == before);
    assert_eq!(contents(&kept).len(), 1);
}

#[test]
fn keeping_that_fails_leaves_what_others_have_put_beside_it() {
    let (mut b, _) = directory();
    let damaged = b.logs[0].frames[20];
    b.overwrite(0, damaged, 0x5a);
    b.store();
    let plan = plan(b.dir());
    let (home, kept) = place();
    let theirs = home.path().join("a/other");
    let (to, other) = (kept.clone(), theirs.clone());
    let watcher = move |change: Change<'_>| match change {
        Change::Write { path, .. } if path.starts_with(&to) => {
            fs::create_dir_all(&other)?;
            fs::write(other.join("identity"), "the only copy")?;
            Err(io::Error::from_raw_os_error(ENOSPC))
        }
        _ => Ok(()),
    };
    let refused = watched(watcher, || make(b.dir(), &plan, &kept)).expect_err("full");
    assert!(matches!(refused, CutError::Keep(_)), "{refused}");
    assert!(theirs.join("identity").is_file() && !kept.exists());
}

#[test]
fn a_place_that_another_cut_has_used_meanwhile_is_refused() {
    let [mut b, mut c] = [directory().0, directory().0];
    for (b, frame) in [(&mut b, 20), (&mut c, 1)] {
        let damaged = b.logs[0].frames[frame];
        b.overwrite(0, damaged, 0x5a);
        b.store();
    }
    let (first, second) = (plan(b.dir()), plan(c.dir()));
    let (_home, kept) = place();
    make(b.dir(), &first, &kept).expect("cut");
    let (copies, before) = (contents(&kept), contents(c.dir()));
    let refused = make(c.dir(), &second, &kept).expect_err("used");
    assert!(matches!(refused, CutError::Keep(_)), "{refused}");
    assert!(
        refused.to_string().contains("name another place"),
        "{refused}"
    );
    assert!(contents(&kept) == copies && contents(c.dir()) == before);
}
