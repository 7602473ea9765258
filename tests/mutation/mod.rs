//! Damage for the fuzz tests: a few edits of a good file.

use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{Config, TestCaseResult, TestRunner};

/// One edit.
#[derive(Clone, Debug)]
pub enum Edit {
    Byte(Index, u8),
    Word(Index, u64, usize),
    Insert(Index, Vec<u8>),
    Remove(Index, usize),
    Repeat(Index, usize),
    Cut(Index),
}

/// Between one and six edits.
pub fn edits() -> impl Strategy<Value = Vec<Edit>> {
    let place = any::<Index>;
    let extreme =
        prop::sample::select(vec![0, 1, 0x7f, 0xff, 0x7fff_ffff, 0xffff_ffff, u64::MAX >> 1, u64::MAX]);
    let edit = prop_oneof![
        6 => (place(), any::<u8>()).prop_map(|(at, byte)| Edit::Byte(at, byte)),
        2 => (place(), extreme, 1..=8_usize).prop_map(|(at, word, width)| Edit::Word(at, word, width)),
        2 => (place(), prop::collection::vec(any::<u8>(), 1..8)).prop_map(|(at, bytes)| Edit::Insert(at, bytes)),
        2 => (place(), 1..16_usize).prop_map(|(at, count)| Edit::Remove(at, count)),
        1 => (place(), 1..64_usize).prop_map(|(at, count)| Edit::Repeat(at, count)),
        1 => place().prop_map(Edit::Cut),
    ];
    prop::collection::vec(edit, 1..=6)
}

/// The bytes with these edits made, one after the other.
pub fn edited(good: &[u8], edits: &[Edit]) -> Vec<u8> {
    let mut bytes = good.to_vec();
    for edit in edits {
        let at = |index: &Index| index.index(bytes.len().max(1)).min(bytes.len());
        match edit {
            Edit::Byte(index, byte) => {
                let at = at(index);
                bytes.get_mut(at).into_iter().for_each(|b| *b = *byte);
            }
            Edit::Word(index, word, width) => {
                let at = at(index);
                bytes.iter_mut().skip(at).zip(&word.to_le_bytes()[..*width]).for_each(|(b, w)| *b = *w);
            }
            Edit::Insert(index, more) => {
                let at = at(index);
                drop(bytes.splice(at..at, more.iter().copied()));
            }
            Edit::Remove(index, count) => {
                let at = at(index);
                drop(bytes.drain(at..(at + count).min(bytes.len())));
            }
            Edit::Repeat(index, count) => {
                let at = at(index);
                let part = bytes[at..(at + count).min(bytes.len())].to_vec();
                drop(bytes.splice(at..at, part));
            }
            Edit::Cut(index) => bytes.truncate(at(index)),
        }
    }
    bytes
}

/// Runs a property `CROSSWEAVE_FUZZ_CASES` times, or else `cases` times.
pub fn fuzz<S: Strategy>(cases: u32, inputs: S, property: impl Fn(S::Value) -> TestCaseResult) {
    let asked = std::env::var("CROSSWEAVE_FUZZ_CASES").ok().and_then(|cases| cases.parse().ok());
    let config = Config { cases: asked.unwrap_or(cases), failure_persistence: None, ..Config::default() };
    if let Err(error) = TestRunner::new(config).run(&inputs, property) {
        panic!("{error}");
    }
}
