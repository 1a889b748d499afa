//! Slots whose files were cut: no start and no `verify` takes one for a slot that was never used.

use std::fs::File;

use ringtide_system_tests::{Cli, Setup, exit};

use crate::directory::{after_a_kill, stamps};

#[test]
fn a_slot_in_use_that_was_cut_is_refused_whatever_is_left_of_it() {
    let directory = after_a_kill();
    let slot = &directory.live_slots()[0].file;
    // From 60 bytes on the header is whole, and says how long the slot was.
    for bytes in [0, 30, 59, 60, 4096, 1 << 20] {
        let copy = directory.copy();
        let path = copy.path().join(slot);
        let file = File::options().write(true).open(&path).expect("a slot");
        file.set_len(bytes).expect("cut");
        let before = stamps(copy.path());
        let name = path.to_str().expect("a path of text");
        let dir = copy.path().to_str().expect("a path of text");
        let words = [name, &format!("has {bytes} bytes")];

        let verified = Cli::without_server().run(&["verify", "--data-dir", dir]);
        assert_eq!(verified.code(), exit::PROBLEMS_FOUND, "{verified:?}");
        let found = verified.text();
        assert!(words.iter().all(|word| found.contains(word)), "{found}");
        assert!(!found.contains("frames say"), "{found}");

        let kept = copy.path().with_extension("kept");
        let kept = kept.to_str().expect("a path of text");
        let args = [
            "repair",
            "--cut-log",
            "--yes",
            "--data-dir",
            dir,
            "--keep",
            kept,
        ];
        let cut = Cli::without_server().run(&args);
        assert_eq!(cut.code(), exit::DIRECTORY_CORRUPT, "{cut:?}");
        assert!(
            cut.stderr.contains("no cut of the log mends this"),
            "{cut:?}"
        );

        let started = Setup::new().shards(2).data_dir(copy.path()).try_start();
        let refusal = started.err().expect("records are lost");
        assert_eq!(refusal.status.code(), Some(exit::DIRECTORY_CORRUPT));
        refusal.says(&words);
        assert_eq!(stamps(copy.path()), before, "nothing was changed");
    }
}
