//! Says what the probes find in a directory: `cargo run -p ringtide-uring --example host_facts [dir]`

use std::path::PathBuf;

use ringtide_uring::probe;

fn main() {
    let directory = PathBuf::from(std::env::args().nth(1).unwrap_or_else(|| ".".to_owned()));
    println!("kernel          {}", probe::release());
    println!("io_uring        {:?}", probe::io_uring());
    println!("memlock         {:?}", probe::memlock_limit());
    println!(
        "cpus online     {:?}, isolated {:?}",
        probe::online(),
        probe::isolated()
    );
    println!("governor        {:?}", probe::governor(0));
    println!("file system     {:?}", probe::file_system(&directory));
    println!("free            {:?}", probe::free_bytes(&directory));
    println!("direct I/O      {:?}", probe::direct_io(&directory));
    println!("alignment       {:?}", probe::alignment(&directory));
    let device = probe::block_device(&directory);
    println!("device          {device:?}");
    if let Ok(Some(device)) = device {
        println!("interrupts      {:?}", probe::interrupts_of(&device.name));
    }
    println!(
        "durable 4 KiB   {:?}",
        probe::durable_write_latency(&directory, 500)
    );
}
