//! One thread that publishes a record, sees it acknowledged as durable and consumes it, spinning.
//!
//! `cargo run --release -p ringtide-client --example lowest_latency`; the server is taken from
//! RINGTIDE_SERVER. For measurements use `ringtide bench`, which does not fool itself.

use std::time::{Duration, Instant};

use ringtide_client::sync::Client;
use ringtide_client::{
    ConsumerOptions, ErrorCode, Idle, Options, ProducerOptions, Record, Result, Start,
    TopicSettings,
};

const RECORDS: usize = 1000;
const LONG: Duration = Duration::from_secs(5);

fn main() -> Result<()> {
    let server = std::env::var("RINGTIDE_SERVER").unwrap_or("127.0.0.1:7311".into());
    let client = Client::connect([server], Options::new().idle(Idle::Spin))?;
    match client.create_topic("lowest-latency", 1, &TopicSettings::default()) {
        Err(error) if error.code() == Some(ErrorCode::TopicExists) => {}
        created => println!("created {}", created?.name),
    }
    let mut producer = client.producer("lowest-latency", ProducerOptions::new())?;
    let options = ConsumerOptions::new().start(Start::Latest);
    let mut consumer = client.consumer("lowest-latency", options)?;
    // So that the subscription is there before the first record.
    consumer.poll(Duration::from_millis(200))?;

    let mut acknowledged = Vec::with_capacity(RECORDS);
    let mut consumed = Vec::with_capacity(RECORDS);
    for i in 0..RECORDS {
        let began = Instant::now();
        let ticket = producer.send(&Record::new(&i.to_le_bytes()))?;
        producer.wait_for(ticket, LONG)?;
        acknowledged.push(began.elapsed());
        if consumer.poll(LONG)?.is_some() {
            consumed.push(began.elapsed());
        }
    }
    for (what, mut times) in [("acknowledged", acknowledged), ("consumed", consumed)] {
        times.sort();
        let at = |share: usize| {
            times
                .get(times.len() * share / 100)
                .copied()
                .unwrap_or_default()
        };
        println!(
            "{what}: {} records, p50 {:?}, p99 {:?}",
            times.len(),
            at(50),
            at(99)
        );
    }
    Ok(())
}
