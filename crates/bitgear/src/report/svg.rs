//! Drawings: text that grows mark by mark.
//!
//! A mark has a class and no colours. In a page the style sheet says what a class looks like, light
//! and dark; in a file of its own [`standalone`] writes the light colours into the marks, because slide
//! programs read no style sheets.

use std::fmt::Write as _;

/// What the marks of each class look like where there is no style sheet: those of the light page.
const CLASSES: [(&str, &str); 28] = [
    ("t", r##"fill="#1a1a18" font-size="12""##),
    ("t2", r##"fill="#5a5954" font-size="12""##),
    ("t3", r##"fill="#5a5954" font-size="11""##),
    ("th", r##"fill="#1a1a18" font-size="12" font-weight="600""##),
    ("t4", r##"fill="#1a1a18" font-size="9.5""##),
    ("grid", r##"stroke="#e4e3dd" stroke-width="1""##),
    ("axis", r##"stroke="#8b8a83" stroke-width="1""##),
    ("goal", r##"stroke="#5a5954" stroke-width="1.5" stroke-dasharray="5 4""##),
    ("gate", r##"stroke="#1a1a18" stroke-width="2""##),
    ("chosen", r##"fill="#2166c4""##),
    ("chosen-line", r##"stroke="#2166c4" stroke-width="2" fill="none""##),
    ("chosen-ring", r##"stroke="#2166c4" stroke-width="2" fill="#ffffff""##),
    ("other", r##"fill="#77766f""##),
    ("other-line", r##"stroke="#77766f" stroke-width="2" fill="none""##),
    ("other-ring", r##"stroke="#77766f" stroke-width="1.5" fill="#ffffff""##),
    ("right", r##"fill="#2166c4""##),
    ("wrong", r##"fill="#c4500f""##),
    ("later", r##"fill="#2166c4" fill-opacity="0.35""##),
    ("shade", r##"fill="#1a1a18" fill-opacity="0.05""##),
    ("mac", r##"fill="#2166c4""##),
    ("memory", r##"fill="#c4500f""##),
    ("leakage", r##"fill="#77766f""##),
    ("offchip", r##"fill="#0e7d55""##),
    ("change", r##"fill="#7a4fb5""##),
    ("ring", r##"stroke="#1a1a18" stroke-width="1.5" fill="none""##),
    ("used", r##"stroke="#1a1a18" stroke-width="1.2" fill="none""##),
    ("cell", r##"fill="#2166c4" stroke="none""##),
    ("bad", r##"fill="#c4500f" stroke="none""##),
];

/// Which point of a text lies where it is put.
#[derive(Clone, Copy, Debug)]
pub(super) enum Anchor {
    Start,
    Middle,
    End,
}

/// A mark in a scatter plot: shapes tell kinds apart without colour.
#[derive(Clone, Copy, Debug)]
pub(super) enum Mark {
    Circle,
    Diamond,
    Square,
    Star,
    Below,
}

/// A drawing.
#[derive(Debug)]
pub(super) struct Svg {
    id: String,
    title: String,
    description: String,
    size: [f64; 2],
    body: String,
}

impl Svg {
    /// An empty drawing. The title names it, the description says what it shows to whom can't see it.
    pub(super) fn new(id: &str, title: &str, description: &str, size: [f64; 2]) -> Self {
        let [title, description] = [title, description].map(escape);
        Self { id: id.to_owned(), title, description, size, body: String::new() }
    }

    /// A filled box; `tip` appears where a pointer rests.
    pub(super) fn rect(&mut self, class: &str, [x, y]: [f64; 2], [w, h]: [f64; 2], tip: &str) {
        self.rect_with(class, [x, y], [w, h], "", tip);
    }

    /// A box that covers as much as `strength`, 0 to 1, says.
    pub(super) fn shaded(
        &mut self,
        class: &str,
        corner: [f64; 2],
        size: [f64; 2],
        strength: f64,
        tip: &str,
    ) {
        let opacity = format!(" fill-opacity=\"{}\"", number(strength.clamp(0.0, 1.0)));
        self.rect_with(class, corner, size, &opacity, tip);
    }

    fn rect_with(
        &mut self,
        class: &str,
        [x, y]: [f64; 2],
        [w, h]: [f64; 2],
        more: &str,
        tip: &str,
    ) {
        let [x, y, w, h] = [x, y, w.max(0.0), h.max(0.0)].map(number);
        let shape = format!(r#"rect x="{x}" y="{y}" width="{w}" height="{h}"{more}"#);
        self.element(class, &shape, tip);
    }

    /// A straight line.
    pub(super) fn line(&mut self, class: &str, [x1, y1]: [f64; 2], [x2, y2]: [f64; 2]) {
        let [x1, y1, x2, y2] = [x1, y1, x2, y2].map(number);
        self.element(class, &format!(r#"line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}""#), "");
    }

    /// A line through points.
    pub(super) fn polyline(&mut self, class: &str, points: &[[f64; 2]]) {
        let points: Vec<String> =
            points.iter().map(|&[x, y]| format!("{},{}", number(x), number(y))).collect();
        self.element(class, &format!(r#"polyline points="{}""#, points.join(" ")), "");
    }

    /// A mark around a point.
    pub(super) fn mark(&mut self, class: &str, mark: Mark, [x, y]: [f64; 2], r: f64, tip: &str) {
        let shape = match mark {
            Mark::Circle => {
                format!(r#"circle cx="{}" cy="{}" r="{}""#, number(x), number(y), number(r))
            }
            Mark::Square => return self.rect(class, [x - r, y - r], [2.0 * r, 2.0 * r], tip),
            Mark::Diamond => {
                let r = 1.3 * r;
                polygon(&[[x, y - r], [x + r, y], [x, y + r], [x - r, y]])
            }
            Mark::Below => polygon(&[[x - r, y - r], [x + r, y - r], [x, y + r]]),
            Mark::Star => {
                let corner = |i: u32| {
                    let angle = f64::from(i) * std::f64::consts::PI / 5.0;
                    let r = if i.is_multiple_of(2) { 1.5 * r } else { 0.62 * r };
                    [x + r * angle.sin(), y - r * angle.cos()]
                };
                polygon(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9].map(corner))
            }
        };
        self.element(class, &shape, tip);
    }

    /// A text whose baseline starts, is centred or ends at a point.
    pub(super) fn text(&mut self, class: &str, anchor: Anchor, [x, y]: [f64; 2], text: &str) {
        let anchor = match anchor {
            Anchor::Start => "",
            Anchor::Middle => r#" text-anchor="middle""#,
            Anchor::End => r#" text-anchor="end""#,
        };
        let [x, y] = [x, y].map(number);
        let text = escape(text);
        // Writing to a string does not fail.
        let _ = write!(self.body, r#"<text class="{class}" x="{x}" y="{y}"{anchor}>{text}</text>"#);
        self.body.push('\n');
    }

    /// What is drawn until the group ends can be found by a script under this name.
    pub(super) fn begin(&mut self, name: &str) {
        let _ = writeln!(self.body, r#"<g data-part="{name}">"#);
    }

    /// Ends a group.
    pub(super) fn end(&mut self) {
        self.body.push_str("</g>\n");
    }

    fn element(&mut self, class: &str, shape: &str, tip: &str) {
        let name = shape.split(' ').next().unwrap_or_default();
        let rest = &shape[name.len()..];
        let _ = match tip {
            "" => writeln!(self.body, r#"<{name} class="{class}"{rest}/>"#),
            _ => writeln!(
                self.body,
                r#"<{name} class="{class}"{rest}><title>{}</title></{name}>"#,
                escape(tip)
            ),
        };
    }

    /// The drawing for a page, whose style sheet knows its classes.
    pub(super) fn finish(self) -> String {
        let Self { id, title, description, size, body } = self;
        let [w, h] = size.map(number);
        format!(
            r#"<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-labelledby="{id}-title {id}-about" id="{id}" viewBox="0 0 {w} {h}" width="{w}" height="{h}" font-family="system-ui, sans-serif">
<title id="{id}-title">{title}</title>
<desc id="{id}-about">{description}</desc>
{body}</svg>"#
        )
    }
}

/// A drawing as a file of its own, in light colours on white.
pub(super) fn standalone(svg: &str) -> String {
    let mut text = svg.to_owned();
    // Texts are escaped, so that quoted classes occur in marks only.
    for (class, look) in CLASSES {
        text = text.replace(&format!(r#"class="{class}""#), look);
    }
    let ground = r##"<rect width="100%" height="100%" fill="#ffffff"/>"##;
    format!("{}\n", text.replacen("</desc>\n", &format!("</desc>\n{ground}\n"), 1))
}

/// From values to positions.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scale {
    from: [f64; 2],
    to: [f64; 2],
    logarithmic: bool,
}

impl Scale {
    /// Equal differences are equally long. A span without width becomes one of width 1.
    pub(super) fn linear(from: [f64; 2], to: [f64; 2]) -> Self {
        let high = if from[1] > from[0] { from[1] } else { from[0] + 1.0 };
        Self { from: [from[0], high], to, logarithmic: false }
    }

    /// Equal ratios are equally long. Values that are not positive lie at the start.
    pub(super) fn logarithmic([low, high]: [f64; 2], to: [f64; 2]) -> Self {
        let low = if low > 0.0 { low } else { 1e-9 };
        let high = if high > low { high } else { 2.0 * low };
        Self { from: [low, high], to, logarithmic: true }
    }

    /// Where a value lies; what is outside of the span, at its end.
    pub(super) fn at(&self, value: f64) -> f64 {
        let map = |v: f64| if self.logarithmic { v.max(f64::MIN_POSITIVE).ln() } else { v };
        let [low, high] = self.from.map(map);
        let share = ((map(value) - low) / (high - low)).clamp(0.0, 1.0);
        self.to[0] + share * (self.to[1] - self.to[0])
    }

    /// Ends of the span, and where they lie.
    pub(super) fn ends(&self) -> [[f64; 2]; 2] {
        [self.from, self.to]
    }

    /// Round values within the span, rising: about `count` of them, or 1, 2, 5, 10 … on a logarithmic
    /// scale that spans more than a factor of 4.
    pub(super) fn ticks(&self, count: usize) -> Vec<f64> {
        let [low, high] = self.from;
        if self.logarithmic && high / low > 4.0 {
            let decades = low.log10().floor() as i32..=high.log10().ceil() as i32;
            let steps: &[f64] = if high / low < 1e3 { &[1.0, 2.0, 5.0] } else { &[1.0] };
            let all = decades.flat_map(|decade| steps.iter().map(move |s| s * 10_f64.powi(decade)));
            return all.filter(|tick| (low..=high).contains(tick)).collect();
        }
        let rough = (high - low) / count.max(1) as f64;
        let power = 10_f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].into_iter().find(|s| s * power >= rough * 0.999);
        let step = step.unwrap_or(10.0) * power;
        if !step.is_normal() {
            return vec![low];
        }
        let (first, last) = ((low / step - 1e-9).ceil(), (high / step + 1e-9).floor());
        // Never more than asked for, whatever the rounding of extreme values.
        let ticks = (0..=2 * count).map(|i| first + i as f64).take_while(|&i| i <= last);
        ticks.map(|i| i * step + 0.0).collect()
    }

    /// Decimals that tell the ticks apart.
    pub(super) fn decimals(ticks: &[f64]) -> usize {
        let gaps = ticks.windows(2).map(|pair| pair[1] - pair[0]);
        let least = gaps.fold(f64::INFINITY, f64::min);
        if least.is_finite() {
            (-(least * 1.001).log10().floor()).clamp(0.0, 6.0) as usize
        } else {
            2
        }
    }
}

fn polygon(corners: &[[f64; 2]]) -> String {
    let corners: Vec<String> =
        corners.iter().map(|&[x, y]| format!("{},{}", number(x), number(y))).collect();
    format!(r#"polygon points="{}""#, corners.join(" "))
}

/// A coordinate with two decimals at most.
fn number(value: f64) -> String {
    let text = format!("{:.2}", value + 0.0);
    let text =
        if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    if text == "-0" { "0".to_owned() } else { text.to_owned() }
}

/// Text as HTML and XML read it; characters that XML can't hold become question marks.
pub(super) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => out.push('?'),
            c => out.push(c),
        }
    }
    out
}

/// A text of at most so many characters.
pub(super) fn shortened(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_owned();
    }
    // The ends of layer names tell them apart.
    let kept = most.saturating_sub(1);
    let tail: Vec<char> = text.chars().rev().take(kept * 2 / 3).collect();
    let head: String = text.chars().take(kept - tail.len()).collect();
    format!("{head}…{}", tail.into_iter().rev().collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn ticks_are_few_rise_and_lie_within_the_span(
            low in -1e6_f64..1e6, width in 1e-6_f64..1e7, count in 1_usize..12, log: bool,
        ) {
            let low = if log { low.abs() + 1e-6 } else { low };
            let span = [low, low + width];
            let scale = if log { Scale::logarithmic(span, [0.0, 100.0]) } else { Scale::linear(span, [0.0, 100.0]) };
            let ticks = scale.ticks(count);
            prop_assert!(ticks.len() <= 2 * count + 30, "{:?}", ticks);
            prop_assert!(ticks.windows(2).all(|pair| pair[0] < pair[1]), "{:?}", ticks);
            let slack = 1e-6 * (low.abs() + width);
            prop_assert!(ticks.iter().all(|t| (low - slack..=low + width + slack).contains(t)), "{:?}", ticks);
        }
    }

    #[test]
    fn extreme_spans_give_finite_positions() {
        for span in [[0.0, 0.0], [f64::MIN, f64::MAX], [-1e-300, 1e-300], [5.0, -5.0]] {
            for scale in [Scale::linear(span, [0.0, 9.0]), Scale::logarithmic(span, [0.0, 9.0])] {
                assert!(scale.ticks(5).len() < 700);
                let at = scale.at(1.0);
                assert!(at.is_nan() || (0.0..=9.0).contains(&at), "{span:?} {at}");
            }
        }
    }

    #[test]
    fn nothing_from_outside_gets_into_the_markup() {
        let mut svg = Svg::new("x", "<b>", "a & b", [10.0, 10.0]);
        svg.text("t", Anchor::Start, [0.0, 0.0], "</text><script>alert(1)</script>\u{1}");
        svg.rect("mac", [1.0, 2.0], [3.0, 4.0], "\" onload=\"x");
        insta::assert_snapshot!(svg.finish(), @r#"
        <svg xmlns="http://www.w3.org/2000/svg" role="img" aria-labelledby="x-title x-about" id="x" viewBox="0 0 10 10" width="10" height="10" font-family="system-ui, sans-serif">
        <title id="x-title">&lt;b&gt;</title>
        <desc id="x-about">a &amp; b</desc>
        <text class="t" x="0" y="0">&lt;/text&gt;&lt;script&gt;alert(1)&lt;/script&gt;?</text>
        <rect class="mac" x="1" y="2" width="3" height="4"><title>&quot; onload=&quot;x</title></rect>
        </svg>
        "#);
    }

    #[test]
    fn a_file_of_its_own_carries_its_colours() {
        let mut svg = Svg::new("x", "title", "about", [10.0, 10.0]);
        svg.mark("chosen", Mark::Circle, [1.0, 2.0], 3.0, "");
        insta::assert_snapshot!(standalone(&svg.finish()), @r##"
        <svg xmlns="http://www.w3.org/2000/svg" role="img" aria-labelledby="x-title x-about" id="x" viewBox="0 0 10 10" width="10" height="10" font-family="system-ui, sans-serif">
        <title id="x-title">title</title>
        <desc id="x-about">about</desc>
        <rect width="100%" height="100%" fill="#ffffff"/>
        <circle fill="#2166c4" cx="1" cy="2" r="3"/>
        </svg>
        "##);
    }

    #[test]
    fn long_names_keep_their_ends() {
        assert_eq!(shortened("short", 9), "short");
        assert_eq!(shortened("features/block_12/conv_3", 13), "feat…2/conv_3");
    }
}
