//! From outcomes to plots: which lines and bars an experiment's figure has.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use super::Part;
use super::svg::{Axis, Band, Scale, Series, bars, escape, lines};
use crate::spec::{Experiment, Fault, Figure, Op, Ordering, Scope, percent};
use crate::stats::Outcome;
use crate::world::{CUT_MS, FAULT_AT_MS};

/// A plot with its caption.
pub struct Drawn {
    /// What it shows.
    pub caption: String,
    /// The plot.
    pub html: String,
}

fn drawn(caption: impl Into<String>, html: String) -> Drawn {
    Drawn { caption: caption.into(), html }
}

/// All plots of an experiment.
pub fn draw(part: &Part) -> Vec<Drawn> {
    if part.outcomes.is_empty() {
        return Vec::new();
    }
    match part.experiment.figure {
        Figure::Bars => throughput(part),
        Figure::Normalised => normalised(part),
        Figure::Heat => heat(part),
        Figure::Convoy => convoy(part),
        Figure::Timeline => timelines(part),
        Figure::Lag => lag(part),
        Figure::Cost => cost(part),
    }
}

fn main_op(outcome: &Outcome) -> (Op, Scope) {
    let point = &outcome.point;
    let op = point.ops.first().copied().unwrap_or(Op::Create);
    let scope = if op == Op::Move {
        Scope::Cross
    } else if point.locality >= 1.0 {
        Scope::Local
    } else {
        point.elsewhere
    };
    (op, scope)
}

fn distinct<T: PartialEq>(values: impl Iterator<Item = T>) -> Vec<T> {
    let mut found = Vec::new();
    for value in values {
        if !found.contains(&value) {
            found.push(value);
        }
    }
    found
}

fn throughput(part: &Part) -> Vec<Drawn> {
    let outcomes = &part.outcomes;
    let ops = distinct(outcomes.iter().map(|outcome| main_op(outcome).0));
    let scopes = distinct(outcomes.iter().map(|outcome| main_op(outcome).1));
    let value =
        |op: Op, scope: Scope| outcomes.iter().find(|outcome| main_op(outcome) == (op, scope)).map(Outcome::per_second);
    let names = ops.iter().map(|op| op.name().to_owned()).collect();
    let series: Vec<_> = scopes
        .iter()
        .map(|&scope| (scope.name().to_owned(), ops.iter().map(|&op| value(op, scope)).collect()))
        .collect();
    let x = Axis::named("operation", names);
    let y = Axis::new("operations per second, all regions", Scale::Linear);
    let mut found = vec![drawn("Throughput by operation and place", bars("Throughput", &x, &y, &series))];
    // What updates do is hidden beside reads.
    let updates: Vec<Op> = ops.iter().copied().filter(|op| !matches!(op, Op::Read | Op::Reread | Op::Stat)).collect();
    if updates.len() < ops.len() && !updates.is_empty() {
        let names = updates.iter().map(|op| op.name().to_owned()).collect();
        let series: Vec<_> = scopes
            .iter()
            .map(|&scope| (scope.name().to_owned(), updates.iter().map(|&op| value(op, scope)).collect()))
            .collect();
        let x = Axis::named("operation", names);
        found.push(drawn("The same, updates only", bars("Throughput of updates", &x, &y, &series)));
    }
    found.push(distribution("Latency of operations under this load", outcomes));
    found
}

fn distribution(caption: &str, outcomes: &[Outcome]) -> Drawn {
    let lines_of = |outcome: &Outcome| {
        let each = outcome.ops.iter().map(|op| Series {
            name: format!("{} {}", op.op.name(), op.scope.name()),
            points: op.latency.quantiles_ms.iter().map(|&(share, ms)| (ms, share * 100.0)).collect(),
        });
        each.collect::<Vec<_>>()
    };
    let mut series: Vec<Series> = outcomes.iter().flat_map(lines_of).collect();
    series.truncate(super::svg::STYLES + 1);
    let x = Axis::new("latency, ms (log)", Scale::Log);
    let y = Axis { at_least: Some(100.0), ..Axis::new("operations that took no longer, %", Scale::Linear) };
    drawn(caption, lines(caption, &x, &y, &series, &[]))
}

fn normalised(part: &Part) -> Vec<Drawn> {
    let ops = distinct(part.outcomes.iter().map(|outcome| main_op(outcome).0));
    ops.into_iter().map(|op| normalised_op(part, op)).collect()
}

fn normalised_op(part: &Part, op: Op) -> Drawn {
    let of_op: Vec<&Outcome> = part.outcomes.iter().filter(|outcome| main_op(outcome).0 == op).collect();
    let regions: BTreeSet<usize> = of_op.iter().map(|outcome| outcome.point.regions).collect();
    let regions: Vec<usize> = regions.into_iter().collect();
    let place = |count: usize| regions.iter().position(|&found| found == count).unwrap_or(0) as f64;
    let localities = distinct(of_op.iter().map(|outcome| outcome.point.locality));
    let line = |&locality: &f64| {
        let found: Vec<&&Outcome> = of_op.iter().filter(|outcome| outcome.point.locality == locality).collect();
        let base = found.iter().min_by_key(|outcome| outcome.point.regions).map_or(1.0, |outcome| outcome.per_region());
        let points = found.iter().map(|outcome| (place(outcome.point.regions), outcome.per_region() / base.max(1e-9)));
        let mut points: Vec<(f64, f64)> = points.collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        Series { name: format!("{} % local", percent(locality)), points }
    };
    let series: Vec<Series> = localities.iter().map(line).collect();
    let x = Axis::named("regions", regions.iter().map(ToString::to_string).collect());
    let y = Axis { at_least: Some(1.0), ..Axis::new("relative to one region", Scale::Linear) };
    let base = of_op.iter().find(|outcome| outcome.point.regions == 1).map_or(0.0, |outcome| outcome.per_region());
    let caption = format!("{}: throughput per region, normalised to one region ({base:.0}/s)", op.name());
    drawn(caption.clone(), lines(&caption, &x, &y, &series, &[]))
}

fn round_trip_ms(rtt: &str) -> f64 {
    rtt.strip_suffix("ms").and_then(|number| number.parse().ok()).unwrap_or(0.0)
}

fn heat(part: &Part) -> Vec<Drawn> {
    let mut found = Vec::new();
    let regions = distinct(part.outcomes.iter().map(|outcome| outcome.point.regions));
    for count in regions {
        let of: Vec<&Outcome> = part.outcomes.iter().filter(|outcome| outcome.point.regions == count).collect();
        let word = if count == 1 { "region" } else { "regions" };
        found.push(drawn(format!("Median latency in ms, {count} {word}, one application each"), table(&of)));
    }
    let widest = part.outcomes.iter().map(|outcome| outcome.point.regions).max().unwrap_or(1);
    let creates = part
        .outcomes
        .iter()
        .filter(|outcome| outcome.point.regions == widest && matches!(main_op(outcome).0, Op::Create | Op::Move));
    let creates: Vec<&Outcome> = creates.collect();
    let kinds = distinct(creates.iter().map(|outcome| main_op(outcome)));
    let series = kinds.iter().map(|&(op, scope)| {
        let points = creates.iter().filter(|outcome| main_op(outcome) == (op, scope)).filter_map(|outcome| {
            outcome.of(op, scope).map(|found| (round_trip_ms(&outcome.point.rtt), found.latency.p50_ms))
        });
        Series { name: format!("{} {}", op.name(), scope.name()), points: points.collect() }
    });
    let caption = format!("Latency against distance, {widest} regions");
    let (x, y) =
        (Axis::new("round trip between regions, ms", Scale::Linear), Axis::new("median, ms (log)", Scale::Log));
    found.push(drawn(caption.clone(), lines(&caption, &x, &y, &series.collect::<Vec<_>>(), &[])));
    found
}

fn table(outcomes: &[&Outcome]) -> String {
    let distances = distinct(outcomes.iter().map(|outcome| outcome.point.rtt.clone()));
    let kinds = distinct(outcomes.iter().map(|outcome| main_op(outcome)));
    let mut out =
        String::from("<div class=\"scroll\"><table class=\"heat\"><thead><tr><th>operation</th><th>place</th>");
    for rtt in &distances {
        let _ = write!(out, "<th>{}&nbsp;ms apart</th>", escape(rtt.trim_end_matches("ms")));
    }
    out.push_str("</tr></thead><tbody>");
    for (op, scope) in kinds {
        let _ = write!(out, "<tr><th>{}</th><th>{}</th>", op.name(), scope.name());
        for rtt in &distances {
            let cell = outcomes.iter().find(|outcome| outcome.point.rtt == *rtt && main_op(outcome) == (op, scope));
            match cell.and_then(|outcome| outcome.of(op, scope)) {
                Some(found) => {
                    let (p50, p99) = (found.latency.p50_ms, found.latency.p99_ms);
                    // Seven shades from a tenth of a millisecond to a second.
                    let shade = ((p50.max(0.1).log10() + 1.0) * 1.75).clamp(0.0, 6.0) as usize;
                    let _ = write!(out, "<td class=\"mark t{shade}\" title=\"p99 {p99:.1} ms\">{}</td>", digits(p50));
                }
                None => out.push_str("<td>–</td>"),
            }
        }
        out.push_str("</tr>");
    }
    out.push_str("</tbody></table></div>");
    out
}

fn digits(ms: f64) -> String {
    match ms {
        ms if ms >= 100.0 => format!("{ms:.0}"),
        ms if ms >= 10.0 => format!("{ms:.1}"),
        ms => format!("{ms:.2}"),
    }
}

fn convoy(part: &Part) -> Vec<Drawn> {
    let orderings = distinct(part.outcomes.iter().map(|outcome| outcome.point.ordering));
    let shares = distinct(part.outcomes.iter().map(|outcome| outcome.point.multi_group));
    let place = |share: f64| shares.iter().position(|&found| found == share).unwrap_or(0) as f64;
    let names: Vec<String> = shares.iter().map(|&share| percent(share).to_string()).collect();
    let x = Axis::named("share of multi-group commands, %", names);
    let y = Axis::new("latency of local updates, ms (log)", Scale::Log);
    let plot = |quantile: &str, of: &dyn Fn(&Outcome) -> Option<f64>| {
        let line = |&ordering: &Ordering| {
            let found = part.outcomes.iter().filter(|outcome| outcome.point.ordering == ordering);
            let points = found.filter_map(|outcome| of(outcome).map(|ms| (place(outcome.point.multi_group), ms)));
            Series { name: ordering.name().into(), points: points.collect() }
        };
        let series: Vec<Series> = orderings.iter().map(line).collect();
        let caption = format!("{quantile} of local updates beside multi-group commands");
        drawn(caption.clone(), lines(&caption, &x, &y, &series, &[]))
    };
    let local = |outcome: &Outcome| outcome.ops.iter().find(|op| op.scope == Scope::Local).cloned();
    vec![
        plot("Median", &|outcome| local(outcome).map(|op| op.latency.p50_ms)),
        plot("95th percentile", &|outcome| local(outcome).map(|op| op.latency.p95_ms)),
        plot("99th percentile", &|outcome| local(outcome).map(|op| op.latency.p99_ms)),
    ]
}

fn timelines(part: &Part) -> Vec<Drawn> {
    let mut found = Vec::new();
    for outcome in &part.outcomes {
        let at = FAULT_AT_MS as f64 / 1_000.0;
        let end = outcome.timeline.last().map_or(at, |moment| moment.at_s);
        let (to, name) = match outcome.point.fault {
            Fault::None => continue,
            Fault::PrimaryDies => (at, "the primary's node of region 1 dies"),
            Fault::RegionCut => (at + CUT_MS as f64 / 1_000.0, "the last region is cut off"),
            Fault::RegionDies => (end, "the last region is dead"),
        };
        let bands = [Band { from: at, to: to.min(end), name: name.into() }];
        let x = Axis::new("time, s", Scale::Linear);
        let plot = |label: &str, scale: Scale, of: &dyn Fn(&crate::stats::Moment) -> f64| {
            let line = |region: usize| {
                let own = outcome.timeline.iter().filter(|moment| moment.region == region);
                let points =
                    own.map(|moment| (moment.at_s, of(moment))).filter(|point| point.1 > 0.0 || scale == Scale::Linear);
                Series { name: format!("region {}", region + 1), points: points.collect() }
            };
            let series: Vec<Series> = (0..outcome.point.regions).map(line).collect();
            lines(label, &x, &Axis::new(label, scale), &series, &bands)
        };
        let share = percent(outcome.point.multi_group);
        let beside = if share > 0.0 { format!(", {share} % of commands between regions") } else { String::new() };
        let fault = format!("{name}{beside}");
        found.push(drawn(
            format!("Throughput while {fault}"),
            plot("operations per second", Scale::Linear, &|moment| moment.per_second),
        ));
        found.push(drawn(
            format!("Median of local updates while {fault}"),
            plot("median, ms (log)", Scale::Log, &|moment| moment.p50_ms),
        ));
    }
    found
}

fn lag(part: &Part) -> Vec<Drawn> {
    let with = |of: &dyn Fn(&crate::stats::Lag) -> f64| {
        let found = part.outcomes.iter().filter_map(|outcome| Some((outcome.per_second(), of(outcome.lag.as_ref()?))));
        let mut points: Vec<(f64, f64)> = found.collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        points
    };
    let series = [
        Series { name: "lag, median".into(), points: with(&|lag| lag.applied.p50_ms) },
        Series { name: "lag, p99".into(), points: with(&|lag| lag.applied.p99_ms) },
        Series { name: "causal wait, median".into(), points: with(&|lag| lag.causal_wait.p50_ms) },
        Series { name: "causal wait, p99".into(), points: with(&|lag| lag.causal_wait.p99_ms) },
    ];
    let x = Axis::new("updates per second, all regions", Scale::Linear);
    let y = Axis::new("ms", Scale::Linear);
    let reads = [Series { name: "reads in the far region".into(), points: with(&|lag| lag.reads_per_second) }];
    let z = Axis::new("reads per second", Scale::Linear);
    vec![
        drawn(
            "Lag of the far replica, and what a reader waits who knows the newest update",
            lines("Lag", &x, &y, &series, &[]),
        ),
        drawn("Reads that the far replica serves meanwhile", lines("Far reads", &x, &z, &reads, &[])),
    ]
}

fn cost(part: &Part) -> Vec<Drawn> {
    let kinds = distinct(part.outcomes.iter().map(main_op));
    let ops = distinct(kinds.iter().map(|kind| kind.0));
    let scopes = distinct(kinds.iter().map(|kind| kind.1));
    let plot = |label: &str, of: &dyn Fn(&Outcome) -> f64| {
        let value = |op, scope| part.outcomes.iter().find(|outcome| main_op(outcome) == (op, scope)).map(of);
        let series: Vec<_> = scopes
            .iter()
            .map(|&scope| (scope.name().to_owned(), ops.iter().map(|&op| value(op, scope)).collect()))
            .collect();
        let x = Axis::named("operation", ops.iter().map(|op| op.name().to_owned()).collect());
        let y = Axis::new(label, Scale::Linear);
        drawn(label, bars(label, &x, &y, &series))
    };
    vec![
        plot("messages between regions per operation", &|outcome| outcome.wide.messages_per_op),
        plot("bytes between regions per operation", &|outcome| outcome.wide.bytes_per_op),
    ]
}

/// In one sentence, whether what was expected holds; nothing where nothing was expected.
pub fn verdicts(experiment: &Experiment, outcomes: &[Outcome]) -> Vec<(bool, String)> {
    let mut found = Vec::new();
    match experiment.figure {
        Figure::Normalised => {
            let regions = outcomes.iter().map(|outcome| outcome.point.regions).max().unwrap_or(1);
            let local = |count: usize| {
                outcomes.iter().filter(move |outcome| outcome.point.regions == count && outcome.point.locality >= 1.0)
            };
            for many in local(regions).filter(|_| regions > 1) {
                let one = local(1).find(|outcome| outcome.point.ops == many.point.ops);
                let Some(share) = one.map(|one| many.per_region() / one.per_region().max(1e-9)) else { continue };
                let op = main_op(many).0.name();
                let text = format!(
                    "{op}, all local: {regions} regions keep {:.1} % of one region's throughput per region (expected: at least 97 %)",
                    share * 100.0
                );
                found.push((share >= 0.97, text));
            }
        }
        Figure::Convoy => {
            let p95 = |ordering: Ordering, share: f64| {
                let point = outcomes
                    .iter()
                    .find(|outcome| outcome.point.ordering == ordering && outcome.point.multi_group == share)?;
                point.ops.iter().find(|op| op.scope == Scope::Local).map(|op| op.latency.p95_ms)
            };
            for (ordering, most) in [(Ordering::ConflictAware, true), (Ordering::Classic, false)] {
                let (Some(none), Some(tenth)) = (p95(ordering, 0.0), p95(ordering, 0.1)) else { continue };
                let ratio = tenth / none.max(1e-9);
                let (holds, expected) =
                    if most { (ratio <= 1.3, "at most 1.3") } else { (ratio > 10.0, "more than 10") };
                let text = format!(
                    "{}: local p95 at 10 % multi-group commands is {ratio:.2} times that at none (expected: {expected})",
                    ordering.name()
                );
                found.push((holds, text));
            }
        }
        Figure::Timeline => {
            let cuts = outcomes.iter().filter(|outcome| outcome.point.fault == Fault::RegionCut);
            found.extend(cuts.map(cut_verdict));
        }
        Figure::Bars | Figure::Heat | Figure::Lag | Figure::Cost => {}
    }
    found
}

fn cut_verdict(cut: &Outcome) -> (bool, String) {
    let last = cut.point.regions - 1;
    let (from, to) = (FAULT_AT_MS as f64 / 1_000.0, (FAULT_AT_MS + CUT_MS) as f64 / 1_000.0);
    let mean = |inside: bool, of: &dyn Fn(&crate::stats::Moment) -> f64| {
        let others = cut.timeline.iter().filter(|moment| moment.region != last && moment.p50_ms > 0.0);
        let those = others.filter(|moment| (moment.at_s > from) == inside && moment.at_s < to);
        let values: Vec<f64> = those.map(of).collect();
        values.iter().sum::<f64>() / values.len().max(1) as f64
    };
    let ratio = |of: &dyn Fn(&crate::stats::Moment) -> f64| mean(true, of) / mean(false, of).max(1e-9);
    let (rate, median) = (ratio(&|moment| moment.per_second), ratio(&|moment| moment.p50_ms));
    let share = percent(cut.point.multi_group);
    let text = format!(
        "while one region is cut off, with {share} % of commands between regions, the others do {:.1} % of their \
         operations of before, local ones at {:.2} times the median (expected: within 5 %)",
        rate * 100.0,
        median
    );
    let is_near = |ratio: f64| (0.95..=1.05).contains(&ratio);
    (is_near(rate) && is_near(median), text)
}
