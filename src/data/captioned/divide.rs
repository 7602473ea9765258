//! Pictures that come without splits, divided by their names: eight tenths to train on, a tenth each for dev and test.
//!
//! A hash of its name says where a picture belongs, so that the division is the same on every machine and stays as it is
//! when pictures are added.

use xxhash_rust::xxh3::xxh3_64;

use super::Set;

/// The splits, from the lowest hashes to the highest, with the tenths that end there.
const TEST: u64 = u64::MAX / 10;
const DEV: u64 = u64::MAX / 5;

/// How many pictures a split has, and which.
struct Division {
    /// Pictures in the order of their hashes.
    order: Vec<usize>,
    test: usize,
    dev: usize,
}

impl Division {
    fn of(set: &Set) -> Self {
        let hash = |i: usize| xxh3_64(set.items[i].name.as_bytes());
        let mut order: Vec<usize> = (0..set.items.len()).collect();
        order.sort_by_key(|i| (hash(*i), &set.items[*i].name));
        let below = |limit: u64| order.partition_point(|i| hash(*i) < limit);
        let n = order.len();
        if n < 3 {
            return Self { order, test: 0, dev: 0 };
        }
        // A small set may have no hash in a tenth: every split gets a picture.
        let test = below(TEST).clamp(1, n - 2);
        let dev = below(DEV).clamp(test + 1, n - 1) - test;
        Self { order, test, dev }
    }

    fn part(&self, split: &str) -> &[usize] {
        let (test, rest) = self.order.split_at(self.test);
        let (dev, train) = rest.split_at(self.dev);
        match split {
            "test" => test,
            "dev" => dev,
            "train" => train,
            _ => &[],
        }
    }
}

/// The pictures of a split, in the file's order.
pub(super) fn part(mut set: Set, split: &str) -> Set {
    let division = Division::of(&set);
    let [train, dev, test] = ["train", "dev", "test"].map(|split| division.part(split).len());
    set.notices.push(format!(
        "pictures are divided by their names: {train} train, {dev} dev, {test} test; \
         train_captions.tsv, dev_captions.tsv and test_captions.tsv instead would say otherwise"
    ));
    let mut kept = vec![false; set.items.len()];
    division.part(split).iter().for_each(|i| kept[*i] = true);
    let mut kept = kept.into_iter();
    set.items.retain(|_| kept.next() == Some(true));
    set
}

/// The splits that such a set has.
pub(super) fn splits(set: &Set) -> Vec<String> {
    let division = Division::of(set);
    let held = ["dev", "test", "train"].into_iter().filter(|split| !division.part(split).is_empty());
    held.map(str::to_owned).collect()
}
