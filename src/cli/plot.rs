//! A run's curves as an SVG: losses on the left, validation recalls on the right, over steps.

use std::path::Path;

use plotters::coord::Shift;
use plotters::coord::ranged1d::Ranged;
use plotters::prelude::*;
use serde_json::Value;

use crate::data::atomic;
use crate::error::{Error, Result};

/// Points of one line, `(step, value)`, under the name its legend shows.
#[derive(Clone, Debug, PartialEq)]
pub struct Curve {
    /// What the legend says.
    pub label: String,
    /// Steps and values in the order of the steps.
    pub points: Vec<(f64, f64)>,
}

impl Curve {
    /// The values of `key` in the rows of a metrics file that have it beside a `step`.
    ///
    /// `key` may lead into objects by dots (`val.rsum`).
    pub fn from_rows(rows: &[Value], key: &str, label: impl Into<String>) -> Self {
        let value = |row: &Value| key.split('.').try_fold(row, |at, part| at.get(part))?.as_f64();
        let points = rows.iter().filter_map(|row| Some((row.get("step")?.as_f64()?, value(row)?)));
        Self { label: label.into(), points: points.collect() }
    }

    /// At most `most` points, each the mean of its neighbours; values that are no numbers are left out.
    fn thinned(&self, most: usize) -> Vec<(f64, f64)> {
        let points: Vec<_> =
            self.points.iter().copied().filter(|(x, y)| x.is_finite() && y.is_finite()).collect();
        let each = points.len().div_ceil(most).max(1);
        let mean = |chunk: &[(f64, f64)]| {
            let n = chunk.len() as f64;
            let (x, y) = chunk.iter().fold((0.0, 0.0), |(x, y), p| (x + p.0 / n, y + p.1 / n));
            (x, y)
        };
        points.chunks(each).map(mean).collect()
    }
}

/// One of the two charts.
struct Panel<'a> {
    title: &'a str,
    unit: &'a str,
    curves: &'a [Curve],
    /// Few values, worth a dot each.
    dots: bool,
    legend: SeriesLabelPosition,
}

const SIZE: (u32, u32) = (1120, 440);
/// As many as the chart has pixels to tell apart.
const MOST_POINTS: usize = 400;
/// Told apart by colour-blind readers too (Okabe and Ito's palette).
const COLOURS: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(70, 70, 70),
];
const FONT: &str = "sans-serif";

/// The SVG's text. A chart without a finite value says that there is none.
///
/// Errors: none but what the plotting library reports.
pub fn svg(losses: &[Curve], recalls: &[Curve]) -> Result<String> {
    let mut text = String::new();
    let drawn = {
        let root = SVGBackend::with_string(&mut text, SIZE).into_drawing_area();
        root.fill(&WHITE).and_then(|()| {
            let (left, right) = root.split_horizontally(SIZE.0 / 2);
            let loss = Panel {
                title: "Training loss",
                unit: "loss",
                curves: losses,
                dots: false,
                legend: SeriesLabelPosition::UpperRight,
            };
            let recall = Panel {
                title: "Validation recall",
                unit: "recall",
                curves: recalls,
                dots: true,
                legend: SeriesLabelPosition::LowerRight,
            };
            loss.draw(&left)?;
            recall.draw(&right)?;
            root.present()
        })
    };
    drawn.map_err(|e| Error::new(format!("could not draw the curves: {e}")))?;
    Ok(text)
}

/// Writes [`svg`] to `path`; the file is replaced whole or left as it was.
///
/// Errors: the folder cannot be written.
pub fn write(path: &Path, losses: &[Curve], recalls: &[Curve]) -> Result<()> {
    let text = svg(losses, recalls)?;
    atomic::file(path, |out| out.write_all(text.as_bytes()))
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawn = std::result::Result<(), DrawingAreaErrorKind<std::io::Error>>;

impl Panel<'_> {
    fn draw(&self, area: &Area<'_>) -> Drawn {
        let lines: Vec<_> = self.curves.iter().map(|c| c.thinned(MOST_POINTS)).collect();
        let Some((x, y)) = extent(&lines) else {
            return self.draw_empty(area);
        };
        let mut chart = ChartBuilder::on(area)
            .caption(self.title, (FONT, 20))
            .margin(12)
            .margin_right(24)
            .x_label_area_size(44)
            .y_label_area_size(58)
            .build_cartesian_2d(x.0..x.1, y.0..y.1)?;
        let (x_decimals, y_decimals) = (decimals(x), decimals(y));
        chart
            .configure_mesh()
            .x_desc("step")
            .y_desc(self.unit)
            .axis_desc_style((FONT, 15))
            .label_style((FONT, 13))
            .x_labels(8)
            .y_labels(8)
            .max_light_lines(0)
            .bold_line_style(RGBColor(225, 225, 225))
            .x_label_formatter(&|v| format!("{v:.x_decimals$}"))
            .y_label_formatter(&|v| format!("{v:.y_decimals$}"))
            .draw()?;
        for (i, (curve, points)) in self.curves.iter().zip(&lines).enumerate() {
            if points.is_empty() {
                continue;
            }
            let colour = COLOURS[i % COLOURS.len()];
            let stroke = colour.stroke_width(2);
            chart
                .draw_series(LineSeries::new(points.iter().copied(), stroke))?
                .label(&curve.label)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], stroke));
            if self.dots || points.len() == 1 {
                chart.draw_series(points.iter().map(|&p| Circle::new(p, 3, colour.filled())))?;
            }
        }
        chart
            .configure_series_labels()
            .position(self.legend.clone())
            .label_font((FONT, 13))
            .legend_area_size(26)
            .background_style(WHITE.mix(0.85))
            .border_style(RGBColor(200, 200, 200))
            .draw()
    }

    fn draw_empty(&self, area: &Area<'_>) -> Drawn {
        area.titled(self.title, (FONT, 20))?;
        let (width, height) = area.dim_in_pixel();
        let place = (width as i32 / 2 - 40, height as i32 / 2);
        area.draw(&Text::new("no values yet", place, (FONT, 15)))
    }
}

type Range = (f64, f64);

/// The ranges of both axes with a margin above and below, if there is a point at all.
fn extent(lines: &[Vec<(f64, f64)>]) -> Option<(Range, Range)> {
    let mut points = lines.iter().flatten();
    let &(x, y) = points.next()?;
    let grow = |r: Range, v: f64| (r.0.min(v), r.1.max(v));
    let (x, y) = points.fold(((x, x), (y, y)), |(xs, ys), p| (grow(xs, p.0), grow(ys, p.1)));
    // A single value still needs an axis of some length.
    let room = |r: Range| if r.1 > r.0 { (r.1 - r.0) * 0.05 } else { (r.0.abs() * 0.05).max(0.5) };
    let (dx, dy) = (room(x), room(y));
    let low = if y.0 >= 0.0 { (y.0 - dy).max(0.0) } else { y.0 - dy };
    let x = if x.1 > x.0 { x } else { ((x.0 - dx).max(0.0), x.1 + dx) };
    Some((x, (low, y.1 + dy)))
}

/// The decimals that tell an axis' labels apart.
fn decimals(range: Range) -> usize {
    let axis: plotters::coord::types::RangedCoordf64 = (range.0..range.1).into();
    let labels = axis.key_points(8_usize);
    let step = labels.windows(2).map(|w| w[1] - w[0]).fold(f64::INFINITY, f64::min);
    if step.is_finite() && step > 0.0 { (-step.log10()).ceil().clamp(0.0, 9.0) as usize } else { 2 }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn curve(label: &str, n: usize, f: impl Fn(f64) -> f64) -> Curve {
        Curve { label: label.into(), points: (0..n).map(|i| (i as f64 * 10.0, f(i as f64))).collect() }
    }

    #[test]
    fn the_file_shows_every_label_and_replaces_the_old_one() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("curves.svg");
        std::fs::write(&path, "old").expect("written");
        let losses = [
            curve("total", 3000, |i| 40.0 * (-i / 900.0).exp() + 5.0 + (i * 1.7).sin()),
            curve("rank", 3000, |i| 30.0 * (-i / 900.0).exp() + 4.0 + (i * 2.3).sin()),
            curve("path", 3000, |i| 12.0 * (-i / 300.0).exp() + 1.0),
        ];
        let recalls = [
            curve("i2t R@1", 12, |i| 24.0 * (1.0 - (-i / 3.0).exp())),
            curve("t2i R@1", 12, |i| 19.0 * (1.0 - (-i / 4.0).exp())),
            curve("R@10 <i2t & t2i>", 12, |i| 62.0 * (1.0 - (-i / 2.0).exp())),
        ];
        write(&path, &losses, &recalls).expect("drawn");
        let text = std::fs::read_to_string(&path).expect("read");
        if let Some(copy) = std::env::var_os("CROSSWEAVE_PLOT_COPY") {
            std::fs::write(copy, &text).expect("copied");
        }
        for word in ["total", "rank", "path", "i2t R@1", "t2i R@1", "step", "Training loss", "Validation"] {
            assert!(text.contains(word), "{word}");
        }
        assert!(text.contains("&lt;i2t &amp; t2i&gt;"));
        assert!(text.len() < 100_000, "{} bytes", text.len());
        assert_eq!(std::fs::read_dir(folder.path()).expect("listed").count(), 1);
    }

    #[test]
    fn odd_curves_are_drawn_without_trouble() {
        let odd = [
            curve("none", 0, |_| 0.0),
            curve("one", 1, |_| 7.0),
            curve("flat", 5, |_| 1e-9),
            curve("broken", 5, |i| if i == 2.0 { f64::NAN } else { f64::INFINITY }),
            curve("huge", 5, |i| i * 1e300),
        ];
        for one in &odd {
            let text = svg(std::slice::from_ref(one), &odd).expect("drawn");
            assert!(!text.contains("NaN") && text.ends_with("</svg>\n"), "{}", one.label);
        }
        assert_eq!(svg(&[], &[]).expect("drawn").matches("no values yet").count(), 2);
    }

    #[test]
    fn curves_come_from_the_rows_that_have_the_key() {
        let rows = [
            json!({"step": 1, "loss": 2.5}),
            json!({"step": 2, "val": {"rsum": 100}}),
            json!({"loss": 9.0}),
            json!({"step": 3, "loss": null}),
            json!({"step": 4, "loss": 1}),
        ];
        assert_eq!(Curve::from_rows(&rows, "loss", "l").points, [(1.0, 2.5), (4.0, 1.0)]);
        assert_eq!(Curve::from_rows(&rows, "val.rsum", "r").points, [(2.0, 100.0)]);
    }

    #[test]
    fn a_place_that_cannot_be_written_is_an_error() {
        let folder = tempfile::tempdir().expect("a folder");
        let error = write(&folder.path().join("absent/curves.svg"), &[], &[]).expect_err("refused");
        assert!(error.to_string().contains("curves.svg"), "{error}");
    }
}
