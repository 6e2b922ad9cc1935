use geo_bench::{spec::*, costs::Calibration, world::play};
fn main() {
    let costs = Calibration::checked_in();
    let text = std::fs::read_to_string(std::env::args().nth(1).unwrap()).unwrap();
    let exp = Experiment::parse(&text).unwrap();
    for point in exp.points().unwrap() {
        let t = std::time::Instant::now();
        match play(&point, &costs, 1, &|| false) {
            Ok(Some(o)) => {
                println!("{:70} {:8.0}/s/region  {:5.1}s {:9} ev  wan {:.1} msg {:.0} B", point.label(), o.per_region(), t.elapsed().as_secs_f64(), o.events, o.wide.messages_per_op, o.wide.bytes_per_op);
                for r in &o.ops { println!("    {:?} {:?} n={} p50 {} p95 {} p99 {} max {}", r.op, r.scope, r.latency.count, r.latency.p50_ms, r.latency.p95_ms, r.latency.p99_ms, r.latency.max_ms); }
                if let Some(l) = &o.lag { println!("    lag p50 {} p99 {} wait p50 {} p99 {} reads {}", l.applied.p50_ms, l.applied.p99_ms, l.causal_wait.p50_ms, l.causal_wait.p99_ms, l.reads_per_second); }
            }
            Ok(None) => {}
            Err(e) => println!("{}: {e}", point.label()),
        }
    }
}
