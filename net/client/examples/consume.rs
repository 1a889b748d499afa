//! Consumes what the example `publish` published, from where it left off the last time, until
//! nothing has come for two seconds.
//!
//! `cargo run -p ringtide-client --example consume`; the server is taken from RINGTIDE_SERVER.

use std::time::Duration;

use ringtide_client::asynch::Client;
use ringtide_client::{ConsumerOptions, Options, Result, Start};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let server = std::env::var("RINGTIDE_SERVER").unwrap_or("127.0.0.1:7311".into());
    let client = Client::connect([server], Options::new()).await?;
    let options = ConsumerOptions::new().start(Start::committed("example-consumer"));
    let mut consumer = client.consumer("example", options).await?;
    let mut count = 0;
    while let Ok(batch) = tokio::time::timeout(Duration::from_secs(2), consumer.next()).await {
        let batch = batch?;
        for record in batch.records() {
            let text = |bytes: Option<&[u8]>| {
                String::from_utf8_lossy(bytes.unwrap_or_default()).into_owned()
            };
            let (key, value) = (text(record.key), text(record.value));
            println!("{}/{} {key}: {value}", batch.partition(), record.offset);
            count += 1;
        }
    }
    consumer.commit("example-consumer").await?;
    println!("{count} records");
    Ok(())
}
