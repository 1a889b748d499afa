//! The time that each part takes.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ringtide_benches::PARTS;

fn parts(c: &mut Criterion) {
    let mut group = c.benchmark_group("parts");
    for (name, prepare) in PARTS {
        let mut operation = prepare();
        group.throughput(Throughput::Elements(u64::from(operation.times)));
        group.bench_function(*name, |b| b.iter(|| operation.run()));
    }
    group.finish();
}

criterion_group!(benches, parts);
criterion_main!(benches);
