//! Runs the FlatBuffers compiler that was built for this workspace, with the arguments given.

use std::os::unix::process::CommandExt;
use std::process::Command;

fn main() {
    let flatc = flatc_fork::flatc();
    let error = Command::new(flatc).args(std::env::args_os().skip(1)).exec();
    eprintln!("cannot run {}: {error}", flatc.display());
    std::process::exit(1);
}
