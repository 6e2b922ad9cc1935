//! Runs seeds.

fn main() {
    let first: u64 = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(1);
    let count: u64 = std::env::args().nth(2).and_then(|text| text.parse().ok()).unwrap_or(1);
    for seed in first..first + count {
        let outcome = sim::run::run(seed, None, count == 1);
        println!(
            "{seed} {:?} {} ms {} events {} executed {} reads {:x}",
            outcome.verdict, outcome.simulated_ms, outcome.events, outcome.executed, outcome.reads, outcome.trace_hash
        );
        if count == 1 {
            std::fs::write("/tmp/trace.txt", outcome.lines.join("\n")).ok();
        }
    }
}
