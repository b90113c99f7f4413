//! Flame graphs: what `perf script` prints, folded into a tree, drawn as plain SVG.
//!
//! A box for each function, as wide as its part of the samples, above the one that called it. Sorted by
//! name, so that two graphs can be compared.

use std::collections::BTreeMap;
use std::fmt::Write;

const WIDTH: f64 = 1200.0;
const ROW: usize = 16;
const TOP: usize = 48;
/// Narrower boxes are not drawn.
const NARROWEST: f64 = 1.2;
/// Of a character of a label.
const LETTER: f64 = 6.8;

const STYLE: &str = "text{font:11px monospace;fill:#24292f}.k{fill:#ffb77c}.u{fill:#80ccff}\
.l{fill:#aceebb}.r{fill:#d0d7de}rect{stroke:#fff;stroke-width:.5}";

/// A function, in one place of the tree.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Frame {
    samples: u64,
    kind: Kind,
    callees: BTreeMap<String, Frame>,
}

/// Where code is from, which gives the colour.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
enum Kind {
    #[default]
    Process,
    Kernel,
    Program,
    Library,
}

/// Folds the output of `perf script -F comm,ip,sym,dso`: a line with the process, a line for each
/// function from the innermost outwards, an empty line. Processes whose names begin otherwise are left out.
pub fn fold(text: &str, processes: &[&str]) -> Frame {
    let mut root = Frame::default();
    for sample in text.split("\n\n") {
        let mut lines = sample.lines().filter(|line| !line.is_empty());
        let Some(process) = lines.next().map(str::trim) else { continue };
        if !processes.iter().any(|name| process.starts_with(name)) {
            continue;
        }
        // Threads of a kind are one.
        let process = process.trim_end_matches(|letter: char| letter.is_ascii_digit());
        root.samples += 1;
        let mut at = root.callees.entry(process.to_owned()).or_default();
        at.samples += 1;
        let frames: Vec<(&str, Kind)> = lines.filter_map(frame).collect();
        for (name, kind) in frames.into_iter().rev() {
            at = at.callees.entry(name.to_owned()).or_default();
            (at.samples, at.kind) = (at.samples + 1, kind);
        }
    }
    root
}

/// `    7f1c2e52ad77 name+0x12 (/usr/lib/libc.so.6)`.
fn frame(line: &str) -> Option<(&str, Kind)> {
    let (_, rest) = line.trim().split_once(' ')?;
    let (name, place) = rest.rsplit_once(" (")?;
    let name = name.rsplit_once("+0x").map_or(name, |(name, _)| name);
    let kind = if place.starts_with("[kernel") || place.starts_with("[guest.kernel") {
        Kind::Kernel
    } else if place.contains("/bbd") || place.contains("/load") || place.contains("libbb_") {
        Kind::Program
    } else {
        Kind::Library
    };
    Some((if name.is_empty() { "[unknown]" } else { name }, kind))
}

impl Frame {
    fn depth(&self) -> usize {
        1 + self.callees.values().map(Self::depth).max().unwrap_or(0)
    }

    fn draw(&self, out: &mut String, name: &str, all: u64, (x, bottom): (f64, usize)) {
        let width = self.samples as f64 / all as f64 * WIDTH;
        if width < NARROWEST {
            return;
        }
        let class = match self.kind {
            Kind::Process => "r",
            Kind::Kernel => "k",
            Kind::Program => "u",
            Kind::Library => "l",
        };
        let y = bottom - ROW;
        let share = self.samples as f64 * 100.0 / all as f64;
        let _ = write!(
            out,
            "<g><title>{} ({share:.1} %)</title><rect class=\"{class}\" x=\"{x:.1}\" y=\"{y}\" \
             width=\"{width:.1}\" height=\"{ROW}\"/>",
            escaped(name)
        );
        let letters = (0..).take_while(|n| f64::from(*n) * LETTER < width - 6.0).count();
        if letters > 3 {
            let short: String = label(name).chars().take(letters).collect();
            let at = x + 3.0;
            let _ = write!(out, "<text x=\"{at:.1}\" y=\"{}\">{}</text>", y + 12, escaped(&short));
        }
        out.push_str("</g>\n");
        let mut left = x;
        for (name, callee) in &self.callees {
            callee.draw(out, name, all, (left, y));
            left += callee.samples as f64 / all as f64 * WIDTH;
        }
    }
}

/// The whole picture.
pub fn svg(title: &str, root: &Frame) -> String {
    let height = TOP + root.depth() * ROW;
    let mut body = String::new();
    root.draw(&mut body, "all", root.samples.max(1), (0.0, height));
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" role=\"img\">\n\
         <title>{title}</title>\n<style>{STYLE}</style>\n\
         <rect width=\"{WIDTH}\" height=\"{height}\" style=\"fill:#fff\"/>\n\
         <text x=\"4\" y=\"18\" style=\"font-size:15px\">{title}</text>\n\
         <text x=\"4\" y=\"36\">{} samples of CPU time. Orange: kernel; blue: Burstbay; green: \
         libraries.</text>\n{body}</svg>\n",
        root.samples,
        title = escaped(title)
    )
}

/// Without paths and arguments of types, which would fill the box.
fn label(name: &str) -> String {
    let mut short = String::new();
    let mut depth = 0_usize;
    for letter in name.chars() {
        match letter {
            '<' => depth += 1,
            '>' if depth > 0 => depth -= 1,
            _ if depth == 0 => short.push(letter),
            _ => {}
        }
    }
    let short = short.trim_start_matches("::");
    if short.is_empty() { name.to_owned() } else { short.to_owned() }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "bbd \n\t  1a0 copy+0x10 (/usr/lib/libc.so.6)\n\t  2b0 put (/x/bbd)\n\n\
                        bbd \n\t ffff send ([kernel.kallsyms])\n\t  2b0 put+0x4 (/x/bbd)\n\n\
                        rustc \n\t  1 main (/x/rustc)\n\n";

    #[test]
    fn callers_are_below_what_they_call() {
        let root = fold(TEXT, &["bbd"]);
        assert_eq!(root.samples, 2, "others' samples are not ours");
        let put = &root.callees["bbd"].callees["put"];
        assert_eq!((put.samples, put.kind), (2, Kind::Program));
        assert_eq!((put.callees["copy"].samples, put.callees["copy"].kind), (1, Kind::Library));
        assert_eq!(put.callees["send"].kind, Kind::Kernel);
        assert_eq!(root.depth(), 4);
    }

    #[test]
    fn a_box_is_as_wide_as_its_part_of_the_samples() {
        let picture = svg("a < b", &fold(TEXT, &["bbd"]));
        assert!(picture.contains("<title>a &lt; b</title>"));
        let of = |name: &str| picture.lines().find(|line| line.contains(name)).unwrap_or_default();
        assert!(of("<title>put (100.0 %)").contains("x=\"0.0\""), "{picture}");
        assert!(of("<title>put (100.0 %)").contains("width=\"1200.0\""), "{picture}");
        assert!(of("<title>send (50.0 %)").contains("x=\"600.0\""), "{picture}");
        assert!(svg("nothing", &Frame::default()).ends_with("</svg>\n"));
    }

    #[test]
    fn labels_leave_arguments_of_types_out() {
        assert_eq!(label("<bb::Store as bb::Put>::put::{{closure}}"), "put::{{closure}}");
        assert_eq!(label("tcp_sendmsg"), "tcp_sendmsg");
    }
}
