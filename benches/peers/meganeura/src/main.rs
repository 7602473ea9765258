//! meganeura on the products of Crossweave's benches: a case's name a line in, a line of JSON out (see
//! ../README.md). Its matmul takes two axes and its attention one sequence, so a batch of BERT and DIME's pairs are
//! not written.

use std::collections::HashMap;
use std::io::{BufRead, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use meganeura::{Graph, Session, SessionConfig, build};
use serde_json::{Value, json};

fn values(n: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * 7919) % 1000) as f32 * 2e-3 - 1.0).collect()
}

fn matmul(m: usize, k: usize, n: usize) -> Session {
    let mut graph = Graph::new();
    let a = graph.input("a", &[m, k]);
    let b = graph.parameter("b", &[k, n]);
    let y = graph.matmul(a, b);
    graph.set_outputs(vec![y]);
    let mut session = build(&graph, SessionConfig::inference_from_env()).0;
    session.set_input("a", &values(m * k));
    session.set_parameter("b", &values(k * n));
    session
}

/// Whether the first values are the product's.
fn is_right(session: &Session, m: usize, k: usize, n: usize) -> bool {
    let (a, b, y) = (values(m * k), values(k * n), session.read_output(m * n));
    (0..8).all(|j| {
        let want: f64 = (0..k).map(|i| f64::from(a[i]) * f64::from(b[i * n + j])).sum();
        (f64::from(y[j]) - want).abs() < 1e-3 * (k as f64).sqrt()
    })
}

fn once(session: &mut Session) -> f64 {
    let started = Instant::now();
    session.step();
    session.wait();
    1e3 * started.elapsed().as_secs_f64()
}

fn answer(name: &str, sessions: &mut HashMap<String, (Session, f64)>) -> Value {
    if name == "hello" {
        let facts = matmul(8, 8, 8);
        let device = facts.device_information();
        let driver = format!("{} {}", device.driver_name, device.driver_info);
        return json!({"name": "meganeura", "version": "0.3.0", "adapter": device.device_name, "driver": driver});
    }
    if let Some((session, first)) = sessions.get_mut(name) {
        return json!({"ms": once(session), "first_ms": *first});
    }
    let words: Vec<&str> = name.split_whitespace().collect();
    let numbers: Vec<usize> = words.iter().filter_map(|w| w.parse().ok()).collect();
    let (Some(&"matmul"), &[m, k, n]) = (words.first(), numbers.as_slice()) else {
        return json!({"unsupported": "not written for meganeura"});
    };
    // Its kernels are compiled when the session is built.
    let started = Instant::now();
    let mut session = matmul(m, k, n);
    once(&mut session);
    let first = 1e3 * started.elapsed().as_secs_f64();
    if !is_right(&session, m, k, n) {
        return json!({"unsupported": "its product is wrong"});
    }
    sessions.insert(name.into(), (session, first));
    json!({"ms": first, "first_ms": first})
}

fn main() {
    let mut sessions = HashMap::new();
    for line in std::io::stdin().lock().lines() {
        let Ok(line) = line else { return };
        let answer = catch_unwind(AssertUnwindSafe(|| answer(line.trim(), &mut sessions)))
            .unwrap_or_else(|_| json!({"unsupported": "it panicked"}));
        println!("{answer}");
        std::io::stdout().flush().expect("whoever asks reads the answer");
    }
}
