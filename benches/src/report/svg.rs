//! Plots as inline SVG. Series differ by colour, dash and marker, bars by colour and hatch: they can be told apart in black
//! and white. Text and axes take the page's colours.

use std::fmt::Write;

/// Width of the drawing; it scales to the page.
const WIDTH: f64 = 480.0;
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 58.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 46.0;
/// Series that can be told apart; more begin again.
pub const STYLES: usize = 8;
const DASHES: [&str; STYLES] = ["", "7 3", "2 3", "9 3 2 3", "12 4", "1 2", "5 2 1 2 1 2", "4 4"];

// Writing to a string cannot fail.
macro_rules! put {
    ($out:expr, $($arg:tt)*) => { let _ = write!($out, $($arg)*); };
}

/// How an axis divides its length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// Evenly, from zero.
    Linear,
    /// By decades.
    Log,
}

/// An axis.
#[derive(Clone, Debug)]
pub struct Axis {
    /// What it shows, with its unit.
    pub label: String,
    /// How.
    pub scale: Scale,
    /// Named positions instead of numbers, at 0, 1, 2 …
    pub names: Vec<String>,
    /// It reaches at least so far.
    pub at_least: Option<f64>,
}

impl Axis {
    /// An axis with numbers.
    #[must_use]
    pub fn new(label: &str, scale: Scale) -> Axis {
        Axis { label: label.into(), scale, names: Vec::new(), at_least: None }
    }

    /// An axis with names.
    #[must_use]
    pub fn named(label: &str, names: Vec<String>) -> Axis {
        Axis { names, ..Axis::new(label, Scale::Linear) }
    }
}

/// A line through points.
#[derive(Clone, Debug)]
pub struct Series {
    /// For the legend.
    pub name: String,
    /// Where it goes.
    pub points: Vec<(f64, f64)>,
}

/// A time during which something was wrong.
#[derive(Clone, Debug)]
pub struct Band {
    /// From.
    pub from: f64,
    /// To.
    pub to: f64,
    /// What.
    pub name: String,
}

struct Mapped {
    low: f64,
    high: f64,
    scale: Scale,
    ticks: Vec<(f64, String)>,
}

impl Mapped {
    fn of(axis: &Axis, values: impl Iterator<Item = f64>) -> Mapped {
        if !axis.names.is_empty() {
            let ticks = axis.names.iter().enumerate().map(|(at, name)| (at as f64, name.clone())).collect();
            let high = axis.names.len() as f64 - 0.5;
            return Mapped { low: -0.5, high, scale: Scale::Linear, ticks };
        }
        let values: Vec<f64> = values.chain(axis.at_least).filter(|value| value.is_finite()).collect();
        let most = values.iter().copied().fold(0.0_f64, f64::max);
        match axis.scale {
            Scale::Linear => {
                let step = nice_step(most);
                let count = (most / step).ceil().max(1.0) as usize;
                let ticks = (0..=count).map(|at| (at as f64 * step, number(at as f64 * step))).collect();
                Mapped { low: 0.0, high: count as f64 * step, scale: Scale::Linear, ticks }
            }
            Scale::Log => {
                let positive = values.iter().copied().filter(|value| *value > 0.0);
                let least = positive.fold(f64::INFINITY, f64::min).min(most.max(1e-3));
                let (first, last) = (least.log10().floor(), most.max(1e-3).log10().ceil());
                let last = if last <= first { first + 1.0 } else { last };
                let ticks = (first as i32..=last as i32).map(|power| (f64::from(power), number(10_f64.powi(power))));
                Mapped { low: first, high: last, scale: Scale::Log, ticks: ticks.collect() }
            }
        }
    }

    fn share(&self, value: f64) -> f64 {
        let value = match self.scale {
            Scale::Linear => value,
            Scale::Log => value.max(1e-9).log10(),
        };
        ((value - self.low) / (self.high - self.low)).clamp(0.0, 1.0)
    }

    fn tick_share(&self, tick: f64) -> f64 {
        (tick - self.low) / (self.high - self.low)
    }
}

fn nice_step(most: f64) -> f64 {
    let rough = (most / 5.0).max(1e-9);
    let power = 10_f64.powf(rough.log10().floor());
    let factor = [1.0, 2.0, 2.5, 5.0, 10.0].into_iter().find(|factor| factor * power >= rough).unwrap_or(10.0);
    factor * power
}

/// A number for an axis.
#[must_use]
pub fn number(value: f64) -> String {
    let short = |value: f64| format!("{value:.3}").trim_end_matches('0').trim_end_matches('.').to_owned();
    match value.abs() {
        size if size >= 1_000_000.0 => format!("{} M", short(value / 1_000_000.0)),
        size if size >= 10_000.0 => format!("{} k", short(value / 1_000.0)),
        _ => short(value),
    }
}

/// Makes text harmless.
#[must_use]
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn x_at(map: &Mapped, value: f64) -> f64 {
    LEFT + map.share(value) * (WIDTH - LEFT - RIGHT)
}

fn y_at(map: &Mapped, value: f64) -> f64 {
    HEIGHT - BOTTOM - map.share(value) * (HEIGHT - TOP - BOTTOM)
}

fn open(title: &str) -> String {
    let title = escape(title);
    format!("<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{title}\"><title>{title}</title>")
}

fn frame(out: &mut String, x: (&Axis, &Mapped), y: (&Axis, &Mapped)) {
    let (right, floor) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
    for (tick, name) in &y.1.ticks {
        let at = floor - y.1.tick_share(*tick) * (floor - TOP);
        put!(out, "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{right}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>");
        put!(out, "<text class=\"tick\" x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{name}</text>", LEFT - 6.0, at + 4.0);
    }
    // Names must not run into each other.
    let every = x.1.ticks.len().div_ceil(10).max(1);
    for (tick, name) in x.1.ticks.iter().step_by(every) {
        let at = LEFT + x.1.tick_share(*tick) * (right - LEFT);
        put!(out, "<line class=\"axis\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{floor}\" y2=\"{}\"/>", floor + 4.0);
        let name = escape(name);
        put!(out, "<text class=\"tick\" x=\"{at:.1}\" y=\"{}\" text-anchor=\"middle\">{name}</text>", floor + 17.0);
    }
    put!(out, "<path class=\"axis\" d=\"M{LEFT} {TOP}V{floor}H{right}\"/>");
    let middle = (LEFT + right) / 2.0;
    let (x_label, y_label) = (escape(&x.0.label), escape(&y.0.label));
    put!(out, "<text class=\"label x\" x=\"{middle}\" y=\"{}\" text-anchor=\"middle\">{x_label}</text>", HEIGHT - 10.0);
    let at = (TOP + floor) / 2.0;
    put!(
        out,
        "<text class=\"label y\" transform=\"translate(13 {at}) rotate(-90)\" text-anchor=\"middle\">{y_label}</text>"
    );
}

fn marker(out: &mut String, style: usize, x: f64, y: f64, tip: &str) {
    let style = style % STYLES;
    let shape = match style {
        0 => format!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.6\"/>"),
        1 => format!("<rect x=\"{:.1}\" y=\"{:.1}\" width=\"6.6\" height=\"6.6\"/>", x - 3.3, y - 3.3),
        2 => format!("<path d=\"M{x:.1} {:.1}l4.2 7h-8.4z\"/>", y - 4.4),
        3 => format!("<path d=\"M{x:.1} {:.1}l4.4 4.4-4.4 4.4-4.4-4.4z\"/>", y - 4.4),
        4 => format!("<path d=\"M{x:.1} {:.1}l4.2-7h-8.4z\"/>", y + 4.4),
        5 => format!("<path class=\"thin\" d=\"M{:.1} {:.1}l7 7m0-7l-7 7\"/>", x - 3.5, y - 3.5),
        6 => format!("<path class=\"thin\" d=\"M{x:.1} {:.1}v8m-4-4h8\"/>", y - 4.0),
        _ => format!("<circle class=\"hollow\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.6\"/>"),
    };
    put!(out, "<g class=\"mark m{style}\"><title>{}</title>{shape}</g>", escape(tip));
}

/// Lines, with markers where there is room for them.
#[must_use]
pub fn lines(title: &str, x: &Axis, y: &Axis, series: &[Series], bands: &[Band]) -> String {
    let all = || series.iter().flat_map(|one| one.points.iter().copied());
    let (mx, my) = (Mapped::of(x, all().map(|point| point.0)), Mapped::of(y, all().map(|point| point.1)));
    let mut out = open(title);
    for band in bands {
        let (from, to) = (x_at(&mx, band.from), x_at(&mx, band.to));
        let height = HEIGHT - TOP - BOTTOM;
        put!(
            out,
            "<rect class=\"band\" x=\"{from:.1}\" y=\"{TOP}\" width=\"{:.1}\" height=\"{height}\"><title>{}</title></rect>",
            (to - from).max(1.5),
            escape(&band.name)
        );
    }
    frame(&mut out, (x, &mx), (y, &my));
    for (style, one) in series.iter().enumerate() {
        let points: Vec<(f64, f64)> = one.points.iter().map(|&(a, b)| (x_at(&mx, a), y_at(&my, b))).collect();
        let path: Vec<String> = points.iter().map(|(a, b)| format!("{a:.1} {b:.1}")).collect();
        let dash = DASHES[style % STYLES];
        put!(out, "<path class=\"line s{}\" stroke-dasharray=\"{dash}\" d=\"M{}\"/>", style % STYLES, path.join("L"));
        // Markers of different series stand at different places.
        let every = points.len().div_ceil(8).max(1);
        let shift = if every > 1 { style * every / series.len().max(1) } else { 0 };
        for (at, &(a, b)) in points.iter().enumerate().skip(shift).step_by(every) {
            let (px, py) = one.points[at];
            let px = x.names.get(px as usize).cloned().unwrap_or_else(|| number(px));
            marker(&mut out, style, a, b, &format!("{}: {px}, {}", one.name, number(py)));
        }
    }
    out.push_str("</svg>");
    out.push_str(&legend(series.iter().map(|one| one.name.as_str()), false));
    out
}

/// Bars in groups: one value for each group and series; nothing where there is none.
#[must_use]
pub fn bars(title: &str, x: &Axis, y: &Axis, series: &[(String, Vec<Option<f64>>)]) -> String {
    let values = || series.iter().flat_map(|(_, values)| values.iter().flatten().copied());
    let (mx, my) = (Mapped::of(x, std::iter::empty()), Mapped::of(y, values()));
    let mut out = open(title);
    frame(&mut out, (x, &mx), (y, &my));
    let slot = (WIDTH - LEFT - RIGHT) / x.names.len().max(1) as f64;
    let width = (slot * 0.8 / series.len().max(1) as f64).min(46.0);
    let floor = HEIGHT - BOTTOM;
    for (style, (name, values)) in series.iter().enumerate() {
        for (at, value) in values.iter().enumerate() {
            let Some(value) = value else { continue };
            let middle = x_at(&mx, at as f64);
            let left = middle + (style as f64 - series.len() as f64 / 2.0) * width;
            let top = y_at(&my, *value).min(floor - 1.0);
            let tip = format!("{name}, {}: {}", x.names[at], number(*value));
            put!(
                out,
                "<g class=\"mark\"><title>{}</title><rect class=\"bar b{}\" x=\"{left:.1}\" y=\"{top:.1}\" width=\"{:.1}\" height=\"{:.1}\"/>",
                escape(&tip),
                style % STYLES,
                width - 1.5,
                floor - top
            );
            if width >= 22.0 {
                put!(
                    out,
                    "<text class=\"value\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
                    left + width / 2.0,
                    (top - 3.0).max(10.0),
                    rounded(*value)
                );
            }
            out.push_str("</g>");
        }
    }
    out.push_str("</svg>");
    out.push_str(&legend(series.iter().map(|(name, _)| name.as_str()), true));
    out
}

/// Two digits and a letter: what fits above a bar.
fn rounded(value: f64) -> String {
    match value {
        value if value >= 9_950.0 => format!("{:.0}k", value / 1_000.0),
        value if value >= 995.0 => format!("{:.1}k", value / 1_000.0),
        value if value >= 10.0 => format!("{value:.0}"),
        value => format!("{value:.1}"),
    }
}

fn legend<'a>(names: impl Iterator<Item = &'a str>, bars: bool) -> String {
    let mut out = String::from("<ul class=\"legend\">");
    for (style, name) in names.enumerate() {
        let style = style % STYLES;
        out.push_str("<li><svg viewBox=\"0 0 34 14\" aria-hidden=\"true\">");
        if bars {
            put!(out, "<rect class=\"bar b{style}\" x=\"6\" y=\"1\" width=\"22\" height=\"12\"/>");
        } else {
            put!(out, "<path class=\"line s{style}\" stroke-dasharray=\"{}\" d=\"M1 7H33\"/>", DASHES[style]);
            marker(&mut out, style, 17.0, 7.0, name);
        }
        put!(out, "</svg>{}</li>", escape(name));
    }
    out.push_str("</ul>");
    out
}

/// The hatches of bars; once for each page.
#[must_use]
pub fn hatches() -> String {
    let strokes = ["", "M0 8L8 0", "M0 0L8 8", "M0 4H8", "M4 0V8", "M0 8L8 0M0 0L8 8", "M0 4H8M4 0V8", "M2 2h2v2h-2z"];
    let mut out = String::from("<svg width=\"0\" height=\"0\" class=\"defs\" aria-hidden=\"true\"><defs>");
    for (style, stroke) in strokes.iter().enumerate() {
        put!(
            out,
            "<pattern id=\"h{style}\" width=\"8\" height=\"8\" patternUnits=\"userSpaceOnUse\"><rect class=\"fill f{style}\" width=\"8\" height=\"8\"/><path class=\"hatch\" d=\"{stroke}\"/></pattern>"
        );
    }
    out.push_str("</defs></svg>");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_begin_and_end_at_round_numbers() {
        let linear = Mapped::of(&Axis::new("ops/s", Scale::Linear), [3.0, 47_000.0].into_iter());
        assert_eq!((linear.low, linear.high), (0.0, 50_000.0));
        assert_eq!(linear.ticks.last().map(|tick| tick.1.as_str()), Some("50 k"));
        let log = Mapped::of(&Axis::new("ms", Scale::Log), [0.3, 140.0].into_iter());
        assert_eq!((log.low, log.high), (-1.0, 3.0));
        assert_eq!(log.ticks[0].1, "0.1");
        // Nothing to show is no reason to divide by zero.
        let empty = Mapped::of(&Axis::new("ms", Scale::Log), std::iter::empty());
        assert!(empty.share(1.0).is_finite());
    }

    #[test]
    fn names_cannot_break_out_of_the_page() {
        let series = [Series { name: "<script>".into(), points: vec![(1.0, 1.0), (2.0, 3.0)] }];
        let axis = Axis::new("a < b", Scale::Linear);
        let drawn = lines("\"t\"", &axis, &axis, &series, &[]);
        assert!(!drawn.contains("<script>") && drawn.contains("a &lt; b"));
    }
}
