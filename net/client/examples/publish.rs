//! Publishes ten records and prints where each was appended.
//!
//! `cargo run -p ringtide-client --example publish`; the server is taken from RINGTIDE_SERVER.

use ringtide_client::asynch::Client;
use ringtide_client::{ErrorCode, Options, ProducerOptions, Record, Result, TopicSettings};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let server = std::env::var("RINGTIDE_SERVER").unwrap_or("127.0.0.1:7311".into());
    let client = Client::connect([server], Options::new()).await?;
    match client
        .create_topic("example", 3, &TopicSettings::default())
        .await
    {
        Err(error) if error.code() == Some(ErrorCode::TopicExists) => {}
        created => println!("created {}", created?.name),
    }

    let producer = client.producer("example", ProducerOptions::new()).await?;
    let mut acks = Vec::new();
    for i in 0..10 {
        let (key, value) = (format!("key {}", i % 4), format!("value {i}"));
        // Sends at once; whether it is on stable storage, the acknowledgement tells.
        acks.push(producer.send(&Record::new(&value).key(&key)).await?);
    }
    for (i, ack) in acks.into_iter().enumerate() {
        let ack = ack.await?;
        let offset = ack.offset.map_or("?".into(), |o| o.to_string());
        println!("value {i}: partition {}, offset {offset}", ack.partition);
    }
    Ok(())
}
