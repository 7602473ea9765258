//! Progress on stderr: a line that moves on a terminal, now and then a plain line elsewhere.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::eval::Progress;
use crate::eval::rank::Metrics;
use crate::train::{Ending, Event};

/// Between two plain lines at least.
const SELDOM: Duration = Duration::from_secs(5);

/// The moving line, or its plain stand-in.
struct Line {
    bar: ProgressBar,
    terminal: bool,
    last: Option<Instant>,
}

impl Line {
    fn new() -> Self {
        let terminal = std::io::stderr().is_terminal();
        let target = if terminal { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(None, target);
        bar.set_style(ProgressStyle::with_template("{wide_msg}").expect("a template without mistakes"));
        Self { bar, terminal, last: None }
    }

    /// Replaces the line; elsewhere than on a terminal only now and then, or when it is the `last` of a series.
    fn update(&mut self, text: String, last: bool) {
        if self.terminal {
            self.bar.set_message(text);
            self.bar.tick();
        } else if last || self.last.is_none_or(|at| at.elapsed() >= SELDOM) {
            self.last = Some(Instant::now());
            let _ = writeln!(std::io::stderr(), "{text}");
        }
    }

    /// A line that stays.
    fn say(&self, text: &str) {
        self.bar.suspend(|| {
            let _ = writeln!(std::io::stderr(), "{text}");
        });
    }

    fn clear(&self) {
        self.bar.finish_and_clear();
    }
}

/// Progress of a command that counts.
pub struct Bar {
    line: Line,
    unit: &'static str,
    started: Instant,
}

impl Bar {
    /// Counts in these units.
    pub fn new(unit: &'static str) -> Self {
        // A short command says nothing unless to a terminal: its result follows at once.
        let mut line = Line::new();
        line.last = Some(Instant::now());
        Self { line, unit, started: Instant::now() }
    }

    /// `done` of `total`, at something with a name.
    pub fn at(&mut self, done: u64, total: u64, what: &str) {
        let elapsed = self.started.elapsed().as_secs_f64();
        let left =
            if done == 0 { f64::NAN } else { elapsed * (total.saturating_sub(done)) as f64 / done as f64 };
        let text = format!("{what}: {done} of {total} {}, {} left", self.unit, duration(left));
        self.line.update(text, false);
    }

    /// Removes the line.
    pub fn finish(&self) {
        self.line.clear();
    }
}

/// Shows the events of training and evaluation.
pub struct Reporter {
    line: Line,
    counting: Option<Instant>,
}

impl Reporter {
    /// Silent until told.
    pub fn new() -> Self {
        Self { line: Line::new(), counting: None }
    }

    /// Shows one event.
    pub fn tell(&mut self, event: Event) {
        let event = match event {
            Event::Progress(progress) => return self.progress(progress),
            event => event,
        };
        self.counting = None;
        match moving(&event) {
            Some(text) => self.line.update(text, false),
            None => self.line.say(&lasting(&event)),
        }
    }

    /// Shows how far work over a split is.
    pub fn progress(&mut self, progress: Progress) {
        if let Progress::Notice(text) = progress {
            self.counting = None;
            return self.line.say(&format!("notice: {text}"));
        }
        let seconds = self.counting.get_or_insert_with(Instant::now).elapsed().as_secs_f64();
        match progress {
            Progress::Evaluating { done, total } => self.line.update(scoring(done, total, seconds), false),
            Progress::Encoding { done, total } => {
                self.line.update(counting("text encoder", "captions", done, total, seconds), done == total);
            }
            Progress::Reading { done, total } => {
                self.line.update(counting("resizing", "pictures", done, total, seconds), done == total);
            }
            Progress::Extracting { done, total } => {
                self.line.update(counting("features", "pictures", done, total, seconds), done == total);
            }
            Progress::Notice(_) => {}
        }
    }

    /// Removes the moving line.
    pub fn finish(&self) {
        self.line.clear();
    }
}

fn scoring(done: u64, total: u64, seconds: f64) -> String {
    let percent = if total == 0 { 100.0 } else { 100.0 * done as f64 / total as f64 };
    let so_far = format!("scoring: {percent:.0}% of {total} pairs");
    // The clock starts with the first tile's end: until the next there is no rate.
    if seconds < 1e-2 {
        return so_far;
    }
    let rate = done as f64 / seconds;
    format!("{so_far}, {rate:.0} pairs/s, {} left", duration(total.saturating_sub(done) as f64 / rate))
}

fn counting(what: &str, unit: &str, done: u64, total: u64, seconds: f64) -> String {
    let left = duration(seconds * total.saturating_sub(done) as f64 / done as f64);
    format!("{what}: {done} of {total} {unit}, {left} left")
}

/// The text of an event that the next one replaces.
fn moving(event: &Event) -> Option<String> {
    let Event::Step { epoch, step, steps, loss, terms, grad_norm, lr, pairs_per_second, eta_seconds } = event
    else {
        return None;
    };
    let terms: Vec<String> = terms.iter().map(|(name, value)| format!("{name} {value:.3}")).collect();
    let terms = if terms.is_empty() { String::new() } else { format!(" ({})", terms.join(", ")) };
    let left = duration(*eta_seconds);
    Some(format!(
        "epoch {epoch}, step {step}/{steps}: loss {loss:.3}{terms}, grad {grad_norm:.2}, lr {lr:.0e}, \
         {pairs_per_second:.0} pairs/s, {left} left"
    ))
}

/// The text of an event that stays on the screen.
fn lasting(event: &Event) -> String {
    match event {
        Event::Start { run, device, data, parameters, epochs, steps, resumed_at, .. } => {
            let from = resumed_at.map_or(String::new(), |step| format!(", going on from step {step}"));
            let run = run.display();
            format!(
                "{device}: {data}\n{run}: {parameters} parameters, {epochs} epochs of {steps} steps in all{from}"
            )
        }
        Event::Validation { split, step, metrics, best } => {
            let best = if *best { ", the best so far" } else { "" };
            format!("step {step}, {split}: {}{best}", recalls(metrics))
        }
        Event::Saved { path } => format!("saved {}", path.display()),
        Event::Done { ending, run, step, seconds, best } => {
            let why = match ending {
                Ending::Finished => "done",
                Ending::StepLimit => "ended early, at --max-steps",
                Ending::TimeLimit => "ended early, at --time-limit",
                Ending::Interrupted => "stopped; `crossweave train --resume` goes on",
            };
            let best = match best {
                Some((step, metrics)) => format!("best: step {step}, {}", recalls(metrics)),
                None => "no validation yet".to_owned(),
            };
            let run = run.display();
            format!("{run}: {why}, {step} steps in {}; {best}", duration(*seconds))
        }
        Event::Step { .. } | Event::Progress(_) => String::new(),
    }
}

fn recalls(m: &Metrics) -> String {
    let way = |r: &crate::eval::rank::Recall| format!("{:.1}/{:.1}/{:.1}", r.r1, r.r5, r.r10);
    format!("i2t {}, t2i {}, rsum {:.1}", way(&m.i2t), way(&m.t2i), m.rsum())
}

/// Seconds for a person; "?" where unknown.
fn duration(seconds: f64) -> String {
    if !(0.0..1e9).contains(&seconds) {
        return "?".into();
    }
    let s = seconds.round() as u64;
    match s {
        0..60 => format!("{s}s"),
        60..3600 => format!("{}m{:02}s", s / 60, s % 60),
        _ => format!("{}h{:02}m", s / 3600, s / 60 % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_read_well() {
        let cases = [(0.4, "0s"), (59.6, "1m00s"), (3599.0, "59m59s"), (7261.0, "2h01m"), (f64::NAN, "?")];
        for (seconds, text) in cases {
            assert_eq!(duration(seconds), text);
        }
        assert_eq!(duration(f64::INFINITY), "?");
    }

    #[test]
    fn a_step_shows_losses_speed_and_time_left() {
        let step = Event::Step {
            epoch: 2,
            step: 30,
            steps: 900,
            loss: 3.5,
            terms: vec![("rank", 3.0), ("path", 1.0)],
            grad_norm: 9.25,
            lr: 1e-3,
            pairs_per_second: 640.0,
            eta_seconds: 75.0,
        };
        let text = moving(&step).expect("steps move");
        for part in ["epoch 2", "30/900", "3.500", "rank 3.000", "path 1.000", "640 pairs/s", "1m15s left"] {
            assert!(text.contains(part), "{text}");
        }
        assert!(scoring(50, 200, 2.0).contains("25% of 200 pairs, 25 pairs/s, 6s left"));
        assert_eq!(scoring(50, 200, 1e-9), "scoring: 25% of 200 pairs");
    }
}
