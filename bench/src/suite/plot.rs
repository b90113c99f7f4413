//! The plot: one small panel for each row, a bar for each system, the smallest limit as a line.
//! Plain SVG; its colours follow the reader's light or dark background.

use std::fmt::Write;

use super::report::Summary;
use super::rows::Unit;

const WIDTH: usize = 1000;
const PANEL: usize = 490;
const NAME: usize = 118;
const VALUE: usize = 112;
/// Width of the longest figure: figures stand in a column of their own, where no line crosses them.
const FIGURE: f64 = 70.0;
/// A spread is shown up to this part of the longest bar or limit.
const BEYOND: f64 = 1.08;
const _: () = assert!(BEYOND * ((PANEL - NAME - VALUE) as f64) + FIGURE <= (PANEL - NAME) as f64);
const BAR: usize = 15;
const HEAD: usize = 34;
const TOP: usize = 66;

const STYLE: &str = "text{font:12px sans-serif;fill:#24292f}.t{font-weight:bold}.s{fill:#57606a;font-size:11px}\
.direct,.floor{fill:#8c959f}.ext4{fill:#bf8700}.gluster{fill:#cf222e}.burstbay{fill:#0969da}.three,.slow{fill:#8250df}\
.l{stroke:#1a7f37;stroke-width:2}.w{stroke:#57606a;stroke-width:1}\
@media(prefers-color-scheme:dark){text{fill:#e6edf3}.s{fill:#9198a1}.burstbay{fill:#4493f8}\
.gluster{fill:#f85149}.ext4{fill:#d29922}.l{stroke:#3fb950}.w{stroke:#9198a1}}";

/// The whole picture.
pub fn svg(title: &str, summaries: &[Summary]) -> String {
    let mut panels: Vec<(&str, Vec<&Summary>)> = Vec::new();
    for summary in summaries.iter().filter(|summary| summary.rate.is_some()) {
        match panels.last_mut().filter(|(name, _)| *name == summary.row.name) {
            Some((_, group)) => group.push(summary),
            None => panels.push((summary.row.name, vec![summary])),
        }
    }
    let mut body = String::new();
    // Each panel goes below the shorter of the two columns.
    let mut columns = [TOP, TOP];
    for (_, group) in &panels {
        let column = usize::from(columns[1] < columns[0]);
        let height = HEAD + group.len() * (BAR + 3) + 18;
        panel(&mut body, column * (WIDTH - PANEL), columns[column], group);
        columns[column] += height;
    }
    let height = columns[0].max(columns[1]) + 8;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" role=\"img\">\n\
         <title>{title}</title>\n<style>{STYLE}</style>\n\
         <text x=\"0\" y=\"20\" class=\"t\" style=\"font-size:16px\">{title}</text>\n\
         <text x=\"0\" y=\"40\" class=\"s\">Bars: medians, with the spread over the rounds. Green line: \
         the smallest limit of the machine that applies to burstbay-2+1, from the same run.</text>\n\
         {body}</svg>\n",
        title = escaped(title)
    )
}

fn panel(out: &mut String, x: usize, y: usize, group: &[&Summary]) {
    let row = group[0].row;
    let _ = writeln!(
        out,
        "<text x=\"{x}\" y=\"{}\"><tspan class=\"t\">{}</tspan> <tspan class=\"s\">{}</tspan></text>",
        y + 14,
        escaped(row.name),
        escaped(row.about)
    );
    let limit =
        group.iter().find(|s| s.system == super::goals::OURS).and_then(|s| s.share.as_ref());
    let largest = group.iter().filter_map(|summary| summary.rate.map(|rate| rate.median));
    let most = largest.chain(limit.map(|limit| limit.value)).fold(f64::MIN_POSITIVE, f64::max);
    let room = (PANEL - NAME - VALUE) as f64;
    // Spreads may go beyond what there is room for.
    let at = |value: f64| (x + NAME) as f64 + (value / most).min(BEYOND) * room;
    for (i, summary) in group.iter().enumerate() {
        let Some(rate) = summary.rate else { continue };
        let top = y + HEAD - 10 + i * (BAR + 3);
        let class = summary.system.split('-').next().unwrap_or_default();
        let (start, end, middle) = (x + NAME, at(rate.median), top + BAR / 2);
        let _ = writeln!(
            out,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>\
             <rect class=\"{class}\" x=\"{start}\" y=\"{top}\" width=\"{:.1}\" height=\"{BAR}\"/>\
             <line class=\"w\" x1=\"{:.1}\" x2=\"{:.1}\" y1=\"{middle}\" y2=\"{middle}\"/>\
             <text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>",
            start - 6,
            top + BAR - 3,
            escaped(&summary.system),
            (end - start as f64).max(1.0),
            at(rate.min),
            at(rate.max),
            x + PANEL,
            top + BAR - 3,
            value(rate.median, row.unit)
        );
    }
    if let Some(limit) = limit {
        let (top, bottom) = (y + HEAD - 13, y + HEAD - 10 + group.len() * (BAR + 3));
        let _ = writeln!(
            out,
            "<line class=\"l\" x1=\"{0:.1}\" x2=\"{0:.1}\" y1=\"{top}\" y2=\"{bottom}\"><title>{1}</title></line>",
            at(limit.value),
            escaped(limit.limit)
        );
    }
}

fn value(rate: f64, unit: Unit) -> String {
    match unit {
        Unit::Bytes if rate >= 1000.0 => format!("{:.2} GB/s", rate / 1e3),
        Unit::Bytes => format!("{rate:.0} MB/s"),
        Unit::Operations if rate >= 10_000.0 => format!("{:.0} k/s", rate / 1e3),
        Unit::Operations if rate >= 1000.0 => format!("{:.1} k/s", rate / 1e3),
        Unit::Operations => format!("{rate:.0} /s"),
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_short() {
        assert_eq!(value(1234.0, Unit::Bytes), "1.23 GB/s");
        assert_eq!(value(12_345.0, Unit::Operations), "12 k/s");
        assert_eq!(escaped("a < b & c"), "a &lt; b &amp; c");
        assert!(svg("nothing", &[]).ends_with("</svg>\n"));
    }
}
