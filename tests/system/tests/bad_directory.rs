//! What a data directory gets that the broker cannot use: a message that names the path and what to
//! do, an exit code of its own, and nothing in it changed.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use ringtide_system_tests::{Broker, Cli, MountedDisk, Setup, data_root, exit, is_root, skip};

/// A data directory that a broker has used and left.
fn used() -> (Broker, Vec<u8>) {
    let mut broker = Broker::start();
    let topic = broker.peer().create_topic("kept", 1);
    broker.peer().put(topic.partition(0), "kept");
    assert_eq!(broker.stop(), exit::DONE);
    let identity = fs::read(broker.data_dir().join("identity")).expect("an identity");
    (broker, identity)
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path of text")
}

#[test]
fn a_directory_of_another_version_is_refused_with_both_versions() {
    let (mut broker, mut identity) = used();
    let path = broker.data_dir().join("identity");
    let before = identity.clone();
    identity[8..10].copy_from_slice(&9_u16.to_le_bytes());
    fs::write(&path, &identity).expect("a writable file");
    let refusal = broker.restart_refused();
    refusal.says(&[text(&path), "format 9", "format 1"]);
    assert_eq!(
        refusal.status.code(),
        Some(exit::DIRECTORY_UNUSABLE),
        "{refusal:?}"
    );
    assert_eq!(
        fs::read(&path).expect("a file"),
        identity,
        "nothing was changed"
    );

    fs::write(&path, before).expect("a writable file");
    broker.restart();
}

#[test]
fn a_damaged_identity_is_refused() {
    let (mut broker, mut identity) = used();
    let path = broker.data_dir().join("identity");
    identity[33] ^= 1;
    fs::write(&path, &identity).expect("a writable file");
    let refusal = broker.restart_refused();
    refusal.says(&[text(&path), "checksum"]);
    let codes = [exit::DIRECTORY_UNUSABLE, exit::DIRECTORY_CORRUPT].map(Some);
    assert!(codes.contains(&refusal.status.code()), "{refusal:?}");
}

#[test]
fn a_directory_with_foreign_files_is_not_taken_for_a_new_one() {
    let home = tempfile::tempdir_in(data_root()).expect("a folder");
    let foreign = home.path().join("holiday.jpg");
    fs::write(&foreign, "not ours").expect("a writable folder");
    let refusal = Setup::new().data_dir(home.path()).refused();
    refusal.says(&[text(&foreign)]);
    assert_eq!(
        refusal.status.code(),
        Some(exit::DIRECTORY_UNUSABLE),
        "{refusal:?}"
    );
    assert_eq!(fs::read(&foreign).expect("a file"), b"not ours");
    assert_eq!(files_below(home.path()), [foreign], "nothing was added");
}

#[test]
fn a_start_that_is_refused_leaves_no_new_directory() {
    let first = Broker::start();
    let home = tempfile::tempdir_in(data_root()).expect("a folder");
    let path = home.path().join("a/b");
    let taken = first.address(0).to_string();
    let args = ["serve", "--data-dir", text(&path), "--listen", &taken];
    let refused = Cli::without_server().run(&args).failed();
    assert_eq!(refused.code(), exit::CANNOT_LISTEN, "{refused:?}");
    assert!(!home.path().join("a").exists());
}

#[test]
fn a_refused_directory_that_had_no_lock_gets_none() {
    let (mut broker, mut identity) = used();
    let path = |name| broker.data_dir().join(name);
    fs::remove_file(path("lock")).expect("a lock");
    identity[8..10].copy_from_slice(&9_u16.to_le_bytes());
    fs::write(path("identity"), &identity).expect("a writable file");
    let lock = path("lock");
    broker.restart_refused().says(&["format 9"]);
    assert!(!lock.exists());
}

#[test]
fn a_data_directory_that_cannot_be_made_is_refused_for_that() {
    let home = tempfile::tempdir_in(data_root()).expect("a folder");
    let link = home.path().join("link");
    std::os::unix::fs::symlink("elsewhere", &link).expect("a link");
    let refusal = Setup::new().data_dir(&link).refused();
    refusal.says(&[text(&link), "is a link to elsewhere", "--data-dir"]);
    let nowhere = Setup::new().data_dir(Path::new("/proc/ringtide")).refused();
    nowhere.says(&["/proc: ", "--data-dir"]);
    for refused in [refusal, nowhere] {
        let code = refused.status.code();
        assert_eq!(code, Some(exit::DIRECTORY_UNUSABLE), "{refused:?}");
        assert!(!refused.said.contains("O_DIRECT"), "{}", refused.said);
    }
}

#[test]
fn a_foreign_file_in_a_used_directory_is_named() {
    let (mut broker, _) = used();
    let foreign = broker.data_dir().join("core.1234");
    fs::write(&foreign, "not ours").expect("a writable folder");
    broker.restart_refused().says(&[text(&foreign), "move it"]);
    fs::remove_file(&foreign).expect("a file");
    broker.restart();
    let topic = broker.peer().topic("kept").expect("a topic");
    let records = broker.peer().fetch_to(topic.partition(0), 0, 1);
    assert_eq!(records[0].text(), "kept");
}

#[test]
fn a_fresh_file_systems_lost_and_found_is_not_foreign() {
    let home = tempfile::tempdir_in(data_root()).expect("a folder");
    fs::create_dir(home.path().join("lost+found")).expect("a writable folder");
    let broker = Setup::new().data_dir(home.path()).start();
    broker.peer().ping().expect("a broker that serves");
}

#[test]
fn data_without_its_identity_is_refused_rather_than_begun_anew() {
    let (mut broker, identity) = used();
    let path = broker.data_dir().join("identity");
    fs::remove_file(&path).expect("a file");
    broker
        .restart_refused()
        .says(&[text(broker.data_dir()), "identity"]);
    fs::write(&path, identity).expect("a writable folder");
    broker.restart();
}

#[test]
fn a_directory_that_is_a_file_is_refused() {
    let home = tempfile::tempdir_in(data_root()).expect("a folder");
    let path = home.path().join("data");
    fs::write(&path, "").expect("a writable folder");
    let refusal = Setup::new().data_dir(&path).refused();
    refusal.says(&[text(&path)]);
    assert_eq!(
        refusal.status.code(),
        Some(exit::DIRECTORY_UNUSABLE),
        "{refusal:?}"
    );
}

#[test]
fn an_unreadable_directory_is_refused() {
    let home = tempfile::tempdir_in(data_root()).expect("a folder");
    let path = home.path().join("data");
    fs::create_dir(&path).expect("a writable folder");
    let mode = |path: &Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("our own folder");
    };
    mode(&path, 0o000);
    let setup = Setup::new().data_dir(&path);
    let refusal = if is_root() {
        // Root reads everything, so somebody else has to try; who needs a way to binary and folder.
        mode(home.path(), 0o755);
        let nobody = 65_534;
        let way = [ringtide_system_tests::binary(), &path];
        if !way.iter().all(|p| p.ancestors().skip(1).all(open_to_all)) {
            skip(
                "an_unreadable_directory_is_refused",
                "no way for another user to the binary",
            );
            return;
        }
        setup.uid(nobody).refused()
    } else {
        setup.refused()
    };
    refusal.says(&[text(&path)]);
    assert_eq!(
        refusal.status.code(),
        Some(exit::DIRECTORY_UNUSABLE),
        "{refusal:?}"
    );
    mode(&path, 0o755);
}

fn open_to_all(folder: &Path) -> bool {
    folder
        .metadata()
        .is_ok_and(|m| m.permissions().mode() & 0o001 != 0)
}

#[test]
fn a_directory_locked_by_another_broker_is_refused() {
    let first = Broker::start();
    let refusal = Setup::new().data_dir(first.data_dir()).refused();
    refusal.says(&[text(first.data_dir()), "stop it"]);
    assert_eq!(
        refusal.status.code(),
        Some(exit::DIRECTORY_LOCKED),
        "{refusal:?}"
    );
    first.peer().ping().expect("the first broker goes on");
}

#[test]
fn a_file_system_without_direct_io_is_refused() {
    let disk = match MountedDisk::ramfs() {
        Ok(disk) => disk,
        Err(reason) => return skip("a_file_system_without_direct_io_is_refused", &reason),
    };
    let path = disk.path().join("data");
    let refusal = Setup::new().data_dir(&path).refused();
    refusal.says(&[text(disk.path()), "O_DIRECT"]);
    let codes = [exit::HOST_UNFIT, exit::DIRECTORY_UNUSABLE].map(Some);
    assert!(codes.contains(&refusal.status.code()), "{refusal:?}");
}

#[test]
fn doctor_says_the_same_of_a_file_system_without_direct_io() {
    let disk = match MountedDisk::ramfs() {
        Ok(disk) => disk,
        Err(reason) => {
            return skip(
                "doctor_says_the_same_of_a_file_system_without_direct_io",
                &reason,
            );
        }
    };
    let path = disk.path().join("data");
    let finished = Cli::without_server().run(&["doctor", "--data-dir", text(&path)]);

    assert_eq!(finished.code(), exit::HOST_UNFIT, "{finished:?}");
    let said = format!("{}{}", finished.text(), finished.stderr);
    for word in ["O_DIRECT", text(disk.path())] {
        assert!(said.contains(word), "{word:?} is not in: {said}");
    }
}

#[test]
fn a_disk_too_small_for_the_log_is_refused() {
    let disk = match MountedDisk::ext4(8 << 20) {
        Ok(disk) => disk,
        Err(reason) => return skip("a_disk_too_small_for_the_log_is_refused", &reason),
    };
    let path = disk.path().join("data");
    let refusal = Setup::new()
        .args(&["--wal-slot-bytes", "64MiB"])
        .data_dir(&path)
        .refused();
    refusal.says(&[text(disk.path())]);
}

#[test]
fn a_damaged_write_ahead_log_is_refused_rather_than_cut() {
    let mut broker = Setup::new().args(&["--wal-slots", "3"]).start();
    let topic = broker.peer().create_topic("kept", 1);
    let mut peer = broker.peer();
    for n in 0..200 {
        peer.put(topic.partition(0), format!("kept {n}"));
    }
    broker.kill();
    // One bit in the middle of what was acknowledged, wherever it lies.
    let needle = b"kept 100";
    let mut hit = Vec::new();
    for path in files_below(broker.data_dir()) {
        let mut bytes = fs::read(&path).expect("a file");
        if let Some(at) = bytes.windows(needle.len()).position(|w| w == needle) {
            bytes[at] ^= 1;
            fs::write(&path, &bytes).expect("a writable file");
            hit.push(path);
        }
    }
    assert!(!hit.is_empty(), "what was acknowledged lies somewhere");
    let refusal = broker.restart_refused();
    let named = hit.iter().any(|path| refusal.said.contains(text(path)));
    assert!(named, "none of {hit:?} is named: {}", refusal.said);
    assert_eq!(
        refusal.status.code(),
        Some(exit::DIRECTORY_CORRUPT),
        "{refusal:?}"
    );
}

#[test]
fn what_is_no_file_in_the_place_of_one_is_named_and_not_waited_for() {
    let mut broker = Broker::start();
    let topic = broker.peer().create_topic("kept", 1);
    for n in 0..200 {
        broker.peer().put(topic.partition(0), format!("kept {n}"));
    }
    assert_eq!(broker.stop(), exit::DONE);
    broker.restart();
    broker.peer().put(topic.partition(0), "kept");
    broker.kill();
    let dir = broker.data_dir().to_owned();
    let files = files_below(&dir);
    for extension in ["wal", "log", "snapshot"] {
        let path = files
            .iter()
            .find(|path| path.extension().is_some_and(|e| e == extension));
        let path = path.expect("a file of each kind");
        let aside = dir.with_extension("aside");
        fs::rename(path, &aside).expect("moved away");
        let made = Command::new("mkfifo").arg(path).status();
        assert!(made.expect("mkfifo runs").success());
        let words = [text(path), "not a regular file"];

        let args = ["verify", "--data-dir", text(&dir)];
        let verified = Cli::without_server().run(&args);
        assert_eq!(verified.code(), exit::PROBLEMS_FOUND, "{verified:?}");
        let found = verified.text();
        assert!(words.iter().all(|word| found.contains(word)), "{found}");

        let refusal = broker.restart_refused();
        refusal.says(&words);
        let code = refusal.status.code();
        assert_eq!(code, Some(exit::DIRECTORY_UNUSABLE), "{refusal:?}");
        fs::rename(&aside, path).expect("put back");
    }
    broker.restart();
    assert_eq!(
        broker.peer().fetch_to(topic.partition(0), 0, 201).len(),
        201
    );
}

fn files_below(folder: &Path) -> Vec<std::path::PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            files.extend(files_below(&path))
        } else {
            files.push(path)
        }
    }
    files
}
