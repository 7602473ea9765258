use super::*;
use crate::data::tokenizer::{WordPiece, build_vocab};

/// `n` captions of 0 to 6 words each.
fn table(n: usize) -> Arc<TokenTable> {
    let texts: Vec<String> = (0..n).map(|i| "dog ".repeat(i * 31 % 7)).collect();
    let pieces = WordPiece::from_vocab(build_vocab(&texts, 100)).unwrap();
    Arc::new(TokenTable::new(&pieces, &texts, 8))
}

fn options(batch_size: usize) -> SamplerOptions {
    SamplerOptions {
        batch_size,
        extra_captions: 0,
        extra_images: 0,
        seed: 7,
        exclude_own: true,
        drop_last: false,
        boxes_again: None,
    }
}

fn epoch_of(sampler: &mut Sampler, epoch: u64) -> Vec<BatchPlan> {
    (0..sampler.steps_per_epoch()).map(|step| sampler.plan(epoch, step)).collect()
}

#[test]
fn draws_never_change() {
    // What runs of earlier versions drew: a resumed run must draw the same.
    let draws = Draws::new(7, Stream::Extras, 3);
    assert_eq!([0, 1, 1000].map(|i| draws.below(i, 1_000_000)), [883255, 725697, 999640]);
}

#[test]
fn an_epoch_takes_every_caption_once_with_its_image() {
    let mut sampler = Sampler::new(5, table(65), options(8)).unwrap();
    let plans = epoch_of(&mut sampler, 3);
    let sizes: Vec<usize> = plans.iter().map(|plan| plan.captions.len()).collect();
    assert_eq!(sizes, [8, 8, 8, 8, 8, 8, 8, 8, 1]);
    let mut all: Vec<usize> = plans.iter().flat_map(|plan| plan.captions.clone()).collect();
    assert_ne!(all[..10], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
    all.sort_unstable();
    assert_eq!(all, (0..65).collect::<Vec<_>>());
    for plan in &plans {
        assert!(plan.captions.iter().zip(&plan.images).all(|(c, i)| c / 5 == *i));
        let lengths: Vec<usize> = plan.captions.iter().map(|&c| sampler.tokens.length(c)).collect();
        assert!(lengths.is_sorted_by(|a, b| a >= b), "{lengths:?}");
    }
    assert_eq!(sampler.plan(3, 9), BatchPlan::default());
    assert_eq!(sampler.plan(3, u64::MAX), BatchPlan::default());
}

#[test]
fn a_plan_depends_on_seed_epoch_and_step_alone() {
    let wanted = SamplerOptions { extra_captions: 2, ..options(8) };
    let mut sampler = Sampler::new(5, table(65), wanted).unwrap();
    let (first, second) = (epoch_of(&mut sampler, 0), epoch_of(&mut sampler, 1));
    assert_ne!(first, second);
    let mut resumed = Sampler::new(5, table(65), wanted).unwrap();
    assert_eq!(resumed.plan(1, 4), second[4]);
    assert_eq!(resumed.plan(0, 2), first[2]);
    let mut other = Sampler::new(5, table(65), SamplerOptions { seed: 8, ..wanted }).unwrap();
    assert_ne!(other.plan(0, 2), first[2]);
}

#[test]
fn equal_lengths_keep_the_shuffled_order() {
    let mut sampler = Sampler::new(1, table(64), options(64)).unwrap();
    let order: Vec<usize> = sampler.shuffled(0).captions.iter().map(|&c| c as usize).collect();
    let plan = sampler.plan(0, 0);
    for length in 0..9 {
        let of_length = |list: &[usize]| -> Vec<usize> {
            list.iter().copied().filter(|&c| sampler.tokens.length(c) == length).collect()
        };
        assert_eq!(of_length(&plan.captions), of_length(&order));
    }
}

#[test]
fn extras_follow_their_samples_and_spare_the_own_image() {
    let k = 3;
    let mut sampler =
        Sampler::new(5, table(20), SamplerOptions { extra_captions: k, extra_images: 9, ..options(6) })
            .unwrap();
    let mut drawn = [0; 20];
    for plan in (0..200).flat_map(|epoch| epoch_of(&mut sampler, epoch)) {
        let n = plan.images.len();
        assert_eq!(plan.captions.len(), n * (1 + k), "extra_captions wins over extra_images");
        for (i, &extra) in plan.captions[n..].iter().enumerate() {
            assert_ne!(extra / 5, plan.images[i / k]);
            drawn[extra] += 1;
        }
    }
    // 200 epochs x 20 samples x 3 over 20 captions: 600 each, standard deviation 24.
    assert!(drawn.iter().all(|n| (480..720).contains(n)), "{drawn:?}");
}

#[test]
fn faithful_extras_come_from_all_captions() {
    let wanted = SamplerOptions { extra_images: 1, exclude_own: false, ..options(6) };
    let mut sampler = Sampler::new(5, table(10), wanted).unwrap();
    let plans: Vec<_> = (0..100).flat_map(|epoch| epoch_of(&mut sampler, epoch)).collect();
    let own = plans
        .iter()
        .flat_map(|p| (0..p.captions.len()).map(|i| p.images[i] == p.images[p.captions.len() + i]));
    let share = own.clone().filter(|&same| same).count() as f64 / own.count() as f64;
    // Of two images, half the draws are the own one; 1,000 draws.
    assert!((0.43..0.57).contains(&share), "{share}");
}

#[test]
fn impossible_samplers_are_refused() {
    assert!(Sampler::new(5, table(10), options(0)).is_err());
    assert!(Sampler::new(5, table(11), options(2)).is_err());
    assert!(Sampler::new(5, table(0), options(2)).is_err());
    assert!(Sampler::new(5, table(5), SamplerOptions { extra_captions: 1, ..options(2) }).is_err());
    assert!(Sampler::new(5, table(10), SamplerOptions { extra_captions: usize::MAX, ..options(2) }).is_err());
}
