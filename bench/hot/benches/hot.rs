//! The time that the hot functions take: `cargo bench -p memdex-hot`, with a part of a name for some of them.

use std::time::Duration;

use criterion::{BatchSize, Criterion, Throughput};

fn main() {
    let mut criterion = Criterion::default()
        .without_plots()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .configure_from_args();
    for hot in memdex_hot::ALL {
        let mut group = criterion.benchmark_group(hot.name);
        group.throughput(Throughput::Elements(u64::from(hot.operations)));
        group.bench_function("time", |bencher| {
            bencher.iter_batched(|| hot.prepare(), |work| work(), BatchSize::PerIteration);
        });
    }
    criterion.final_summary();
}
