//! The report in a real browser, at a phone's and at a desktop's width: everything is drawn, labelled and fits.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::Command;
use std::sync::atomic::AtomicBool;

use geo_bench::costs::Calibration;
use geo_bench::report::{Checked, Conditions, Part, Report, SCHEMA};
use geo_bench::spec::{Op, Point, Scope, Sweep};
use geo_bench::sweep::{Settings, run};

/// Looks at the page in a frame of a given width, and writes what is wrong into a list.
const HARNESS: &str = r#"<!doctype html><meta charset="utf-8"><title>harness</title><body style="margin:0">
<iframe id="page" style="border:0;width:WIDTHpx;height:2000px" src="report.html"></iframe><ul id="wrong"></ul><p id="seen"></p>
<script>
const wrong = text => { const line = document.createElement('li'); line.textContent = text; document.getElementById('wrong').append(line); };
window.onerror = text => wrong('script: ' + text);
document.getElementById('page').onload = event => {
  const view = event.target.contentWindow, page = view.document;
  if (page.scripts.length) wrong('the page has scripts');
  const figures = [...page.querySelectorAll('figure')];
  for (const figure of figures) {
    const name = figure.querySelector('figcaption').textContent;
    const marks = [...figure.querySelectorAll('.mark')].filter(mark => !mark.closest('.legend'));
    if (!marks.length) wrong(name + ': no marks');
    for (const mark of marks) {
      const box = mark.getBoundingClientRect(), svg = mark.closest('svg');
      if (!(box.width > 0 && box.height > 0)) { wrong(name + ': an empty mark'); break; }
      if (svg) {
        const frame = svg.getBoundingClientRect();
        if (box.left < frame.left - 3 || box.right > frame.right + 3) { wrong(name + ': a mark outside'); break; }
      }
    }
    const svg = figure.querySelector(':scope > svg');
    if (!svg) continue;
    for (const axis of ['x', 'y']) {
      const label = svg.querySelector('.label.' + axis);
      if (!label || !label.textContent.trim() || !label.getBBox().width) wrong(name + ': no label at ' + axis);
    }
    if (svg.querySelectorAll('.tick').length < 3) wrong(name + ': no ticks');
    const size = parseFloat(view.getComputedStyle(svg.querySelector('.tick')).fontSize) * svg.getBoundingClientRect().width / 480;
    if (size < 8) wrong(name + ': letters of ' + size.toFixed(1) + ' px');
  }
  const wide = page.documentElement.scrollWidth;
  if (wide > view.innerWidth + 1) wrong('the page is ' + wide + ' px wide');
  document.getElementById('seen').textContent = 'figures ' + figures.length;
  document.title = 'looked';
};
</script>"#;

fn report() -> Report {
    let calibration = Calibration::checked_in();
    let (costs, stop) = (calibration.clone(), AtomicBool::new(false));
    let mut parts = Vec::new();
    for mut experiment in geo_bench::experiments::all().unwrap() {
        let faults = experiment.sweep.fault.first().copied();
        // A corner of each experiment is enough to draw it.
        let base = Point { clients: 2, mounts: 1, warmup_ms: 200, duration_ms: 300, ..experiment.base.clone() };
        experiment.base = Point { far_readers: base.far_readers.min(4), ..base };
        let sweep = experiment.sweep.clone();
        experiment.sweep = Sweep {
            regions: if sweep.regions.is_empty() { Vec::new() } else { vec![1, 3] },
            rtt: sweep.rtt.into_iter().take(2).collect(),
            ops: sweep.ops.into_iter().filter(|op| matches!(op, Op::Read | Op::Create | Op::Move)).collect(),
            locality: sweep.locality.into_iter().take(2).collect(),
            multi_group: sweep.multi_group.into_iter().filter(|&share| share == 0.0 || share == 0.1).collect(),
            fault: faults.into_iter().collect(),
            clients: sweep.clients.into_iter().take(2).collect(),
            ..sweep
        };
        if faults.is_some() {
            experiment.base.duration_ms = 15_000;
        }
        let points = experiment.points().unwrap();
        let settings = Settings { costs: &costs, seed: 1, threads: 2 };
        let outcomes = run(&points, settings, &stop, &|_| {}).unwrap().into_iter().flatten().collect();
        parts.push(Part { experiment, outcomes });
    }
    let conditions = Conditions {
        simulated: true,
        seed: 1,
        commit: "0123456789".into(),
        date: "2026-01-01 00:00 UTC".into(),
        machine: "2 CPUs".into(),
        took_s: 1.0,
        calibration,
        interrupted: false,
    };
    let validation = Checked {
        rtt: "geo3".into(),
        op: Op::Create,
        scope: Scope::Local,
        clients: 1,
        rounds: 3,
        real_ms: 2.0,
        real_ms_range: (1.8, 2.5),
        simulated_ms: 2.1,
        real_per_second: 500.0,
        simulated_per_second: 300.0,
    };
    Report { schema: SCHEMA, conditions, parts, validation: vec![validation] }
}

fn browse(folder: &Path, width: u32) -> String {
    std::fs::write(folder.join("harness.html"), HARNESS.replace("WIDTH", &width.to_string())).unwrap();
    let output = Command::new("chromium")
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"])
        .args(["--disable-background-networking", "--disable-component-update", "--disable-sync"])
        .args(["--allow-file-access-from-files", "--enable-logging=stderr", "--dump-dom"])
        .args(["--virtual-time-budget=20000", &format!("--window-size={},2100", width.max(600))])
        .arg(format!("--user-data-dir={}", folder.join(format!("profile-{width}")).display()))
        .arg(format!("file://{}", folder.join("harness.html").display()))
        .output()
        .expect("chromium is there: ./x setup tests installs it");
    let (page, log) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let console: Vec<&str> = log.lines().filter(|line| line.contains("CONSOLE")).collect();
    assert_eq!(console, Vec::<&str>::new());
    assert!(page.contains("<title>looked</title>"), "the page was not loaded: {log}");
    page.into_owned()
}

#[test]
fn report_is_whole_in_a_browser_at_both_widths() {
    let folder = tempfile::tempdir().unwrap();
    // To look at it by hand.
    let kept = std::env::var_os("GEO_REPORT").map(std::path::PathBuf::from);
    let at = kept.as_deref().unwrap_or(folder.path());
    report().save(at).unwrap();
    for width in [390, 1280] {
        let page = browse(at, width);
        let wrong = page.split("<ul id=\"wrong\">").nth(1).unwrap().split("</ul>").next().unwrap();
        assert_eq!(wrong, "", "at a width of {width}");
        let seen = page.split("figures ").nth(1).and_then(|rest| rest.split('<').next()?.parse::<usize>().ok());
        assert!(seen.is_some_and(|figures| figures >= 14), "{seen:?}");
    }
}
