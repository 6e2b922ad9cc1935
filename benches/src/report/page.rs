//! The page: no scripts, no files beside it, light and dark, from a phone's width on.

use std::fmt::Write as _;

use super::figures::{draw, verdicts};
use super::svg::{escape, hatches};
use super::{Part, Report};

// Writing to a string cannot fail.
macro_rules! put {
    ($out:expr, $($arg:tt)*) => { let _ = write!($out, $($arg)*); };
}

/// The report as one HTML page.
#[must_use]
pub fn html(report: &Report) -> String {
    let mut out = String::from(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <meta name=\"color-scheme\" content=\"light dark\"><link rel=\"icon\" href=\"data:,\">\
         <title>GlobalFS: geo-scalability</title><style>",
    );
    out.push_str(include_str!("page.css"));
    out.push_str("</style></head><body>");
    out.push_str(&hatches());
    head(&mut out, report);
    for part in &report.parts {
        section(&mut out, part);
    }
    validation(&mut out, report);
    calibration(&mut out, report);
    out.push_str("</main></body></html>\n");
    out
}

fn head(out: &mut String, report: &Report) {
    let conditions = &report.conditions;
    out.push_str("<main><header><h1>GlobalFS over distances</h1>");
    let how = if conditions.simulated {
        "Simulated in virtual time: the shipped ordering, namespace and codecs, with costs measured on one machine."
    } else {
        "Measured through the mounts of a running cluster."
    };
    put!(out, "<p class=\"lead\">{how}</p>");
    if conditions.interrupted {
        out.push_str("<p class=\"warn\">Ended early: some points are missing.</p>");
    }
    out.push_str("<dl class=\"facts\">");
    let facts = [
        ("commit", conditions.commit.clone()),
        ("date", conditions.date.clone()),
        ("seed", conditions.seed.to_string()),
        ("ran on", conditions.machine.clone()),
        ("took", format!("{:.0} s", conditions.took_s)),
        ("costs of", format!("{}, {}", conditions.calibration.machine.name, conditions.calibration.machine.date)),
    ];
    for (name, value) in facts {
        put!(out, "<div><dt>{name}</dt><dd>{}</dd></div>", escape(&value));
    }
    out.push_str("</dl>");
    if report.parts.len() > 1 {
        out.push_str("<nav><ol>");
        for part in &report.parts {
            let (name, title) = (escape(&part.experiment.name), escape(&part.experiment.title));
            put!(out, "<li><a href=\"#{name}\">{title}</a></li>");
        }
        out.push_str("</ol></nav>");
    }
    out.push_str("</header>");
}

fn section(out: &mut String, part: &Part) {
    let experiment = &part.experiment;
    put!(out, "<section id=\"{}\"><h2>{}</h2>", escape(&experiment.name), escape(&experiment.title));
    put!(out, "<p>{}</p>", escape(&experiment.question));
    let verdicts = verdicts(experiment, &part.outcomes);
    if !verdicts.is_empty() {
        out.push_str("<ul class=\"verdicts\">");
        for (holds, text) in verdicts {
            let (class, word) = if holds { ("holds", "holds") } else { ("fails", "does not hold") };
            put!(out, "<li class=\"{class}\"><b>{word}</b> {}</li>", escape(&text));
        }
        out.push_str("</ul>");
    }
    out.push_str("<div class=\"figures\">");
    for figure in draw(part) {
        let wide = if figure.html.contains("class=\"heat\"") { " class=\"wide\"" } else { "" };
        let caption = escape(&figure.caption);
        put!(out, "<figure{wide}><figcaption>{caption}</figcaption>{}</figure>", figure.html);
    }
    out.push_str("</div>");
    if !experiment.caveat.is_empty() {
        put!(out, "<p class=\"caveat\">{}</p>", escape(&experiment.caveat));
    }
    base(out, part);
    numbers(out, part);
    out.push_str("</section>");
}

fn base(out: &mut String, part: &Part) {
    let Some(point) = part.outcomes.first().map(|outcome| &outcome.point) else { return };
    let clients = part.outcomes.iter().map(|outcome| outcome.point.clients);
    let (least, most) = (clients.clone().min().unwrap_or(0), clients.max().unwrap_or(0));
    let clients = if least == most { most.to_string() } else { format!("{least} to {most}") };
    put!(
        out,
        "<p class=\"conditions\">Per region: {clients} applications on {} mounts, groups of {} voters. Files of {} bytes. \
         {} ms warm-up, {} ms measured.{}{}</p>",
        point.mounts,
        point.voters,
        point.size,
        point.warmup_ms,
        point.duration_ms,
        if point.think_ms > 0.0 { format!(" Pauses of {} ms on average.", point.think_ms) } else { String::new() },
        if point.one_machine { " All on one machine." } else { "" }
    );
}

fn numbers(out: &mut String, part: &Part) {
    out.push_str(
        "<details><summary>All numbers</summary><div class=\"scroll\"><table><thead><tr><th>settings</th><th>operation</th>\
         <th>ops/s</th><th>p50 ms</th><th>p95 ms</th><th>p99 ms</th><th>max ms</th><th>WAN messages/op</th>\
         <th>WAN bytes/op</th></tr></thead><tbody>",
    );
    for outcome in &part.outcomes {
        for op in &outcome.ops {
            let latency = &op.latency;
            put!(
                out,
                "<tr><th>{}</th><th>{} {}</th><td>{:.0}</td><td>{:.2}</td><td>{:.2}</td><td>{:.2}</td><td>{:.2}</td><td>{:.1}</td><td>{:.0}</td></tr>",
                escape(&outcome.point.label()),
                op.op.name(),
                op.scope.name(),
                op.per_second,
                latency.p50_ms,
                latency.p95_ms,
                latency.p99_ms,
                latency.max_ms,
                outcome.wide.messages_per_op,
                outcome.wide.bytes_per_op
            );
        }
    }
    out.push_str("</tbody></table></div></details>");
}

fn validation(out: &mut String, report: &Report) {
    if report.validation.is_empty() {
        return;
    }
    out.push_str(
        "<section id=\"validation\"><h2>Simulator against reality</h2><p>The same workloads through the kernel, on the \
         mounts of a cluster that ran on one machine, and simulated on one machine. Medians should agree within 15 %, \
         throughput within 25 %; what does not is marked. Of several rounds the median counts; how far the real ones were \
         apart stands beside it.</p><div class=\"scroll\"><table><thead><tr><th>network</th>\
         <th>operation</th><th>applications</th><th>rounds</th><th>real p50 ms</th><th>least–most</th><th>simulated</th><th>ratio</th><th>real ops/s</th>\
         <th>simulated</th><th>ratio</th></tr></thead><tbody>",
    );
    for line in &report.validation {
        let (median, rate) = (line.median_ratio(), line.throughput_ratio());
        let mark = |off: bool| if off { " class=\"off\"" } else { "" };
        put!(
            out,
            "<tr><th>{}</th><th>{} {}</th><td>{}</td><td>{}</td><td>{:.2}</td><td>{:.2}–{:.2}</td><td>{:.2}</td><td{}>{median:.2}</td><td>{:.0}</td><td>{:.0}</td><td{}>{rate:.2}</td></tr>",
            escape(&line.rtt),
            line.op.name(),
            line.scope.name(),
            line.clients,
            line.rounds,
            line.real_ms,
            line.real_ms_range.0,
            line.real_ms_range.1,
            line.simulated_ms,
            mark((median - 1.0).abs() > 0.15),
            line.real_per_second,
            line.simulated_per_second,
            mark((rate - 1.0).abs() > 0.25)
        );
    }
    out.push_str("</tbody></table></div></section>");
}

fn calibration(out: &mut String, report: &Report) {
    let text = report.conditions.calibration.to_text().unwrap_or_default();
    put!(
        out,
        "<section><h2>Costs</h2><details><summary>Calibration</summary><pre>{}</pre></details></section>",
        escape(&text)
    );
}
