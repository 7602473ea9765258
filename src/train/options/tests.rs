use super::*;
use crate::systems::kinds;

fn of(line: &str) -> Result<TrainOptions> {
    TrainOptions::of(&line.split_whitespace().collect::<Vec<_>>())
}

#[test]
fn the_authors_command_lines_mean_what_they_did() {
    let line = "--data_path D --data_name f30k_precomp --bert_path B --logger_name runs/x \
                --direction i2t --extra_stc 1 --lambda_softmax 4";
    let theirs = of(line).expect("the README's line");
    assert!(theirs.warnings.is_empty());
    let all = theirs.stored();
    assert_eq!((&all["extra_stc"], &all["lambda_softmax_CMRC"]), (&1.into(), &4.0.into()));
    assert_eq!((&all["max_violation"], &all["direction"]), (&true.into(), &"i2t".into()));
    let ours = of(&line.replace('_', "-").replace("f30k-", "f30k_")).expect("with hyphens");
    assert_eq!(all, ours.stored());
    let short = of("--learning 0.5 --num_h 8 --hid_r 3").expect("prefixes that are clear").stored();
    assert_eq!(
        [&short["learning_rate"], &short["num_head_IMRC"], &short["hid_router"]],
        [&Json::from(0.5), &8.into(), &3.into()]
    );
}

#[test]
fn faithful_takes_their_side_and_ours_is_the_default() {
    let theirs = of("--faithful").expect("legal").fixed;
    assert_eq!(theirs.bert_dropout, BertDropout::Auto);
    assert_eq!((theirs.select, theirs.dev_limit), (Select::R1r5, Some(5000)));
    let ours = of("").expect("legal").fixed;
    assert_eq!((ours.bert_dropout, ours.dev_limit, ours.select), (BertDropout::None, None, Select::Rsum));
    of("--faithful --select r1r5 --dev-limit 5000").expect("what they do anyway");
}

#[test]
fn contradictions_name_both_sides() {
    let cases = [
        ("--cache-text --finetune-bert", &["--cache-text", "--finetune-bert"][..]),
        ("--cache-text --bert-dropout auto", &["--cache-text", "--bert-dropout auto"]),
        ("--cache-text --bert-init random", &["--cache-text", "--bert-init random"]),
        ("--cache-text --faithful", &["--cache-text", "--faithful", "dropout"]),
        ("--faithful --select rsum", &["--faithful", "--select rsum"]),
        ("--faithful --bert-dropout none", &["--faithful", "--bert-dropout none"]),
        ("--faithful --mask-padding", &["--faithful", "--mask-padding", "authors' side"]),
        ("--max_violation --no-max-violation", &["--no-max-violation"]),
        ("--bert-config x --bert-init random --bert-layers 1", &["--bert-config", "--bert-layers"]),
        ("--vocab-size 99", &["--vocab-size", "--bert-init random"]),
        ("--embed_size 30 --num_head_IMRC 4", &["embed_size 30", "num_head_IMRC"]),
        ("--raw_feature_norm_CMRC l1norm", &["authors' code", "clipped_l2norm"]),
        ("--raw_feature_norm_CMRC no", &["no such", "no_norm"]),
        ("--batch_size 0", &["--batch_size", "expected: 1"]),
        ("--learning_rate nan", &["--learning_rate"]),
        ("--time-limit 0", &["--time-limit"]),
        ("--direction i2t --extra_img 1", &["--extra_img", "i2t", "--extra_stc"]),
        ("--direction t2i --extra_stc 1 --extra_img 1", &["--extra_stc", "t2i", "--extra_img"]),
        ("--direction both", &["direction", "both"]),
        ("--precision f64", &["f64", "f32", "f16"]),
        ("--system scan", &["no such system", "dime", "scan"]),
    ];
    for (line, parts) in cases {
        let error = of(line).expect_err(line).to_string();
        for part in parts {
            assert!(error.contains(part), "{line}: no {part:?} in {error}");
        }
    }
}

#[test]
fn what_does_nothing_is_said_once() {
    let options = of("--drop 0.5 --measure cosine --extra_stc 1 --extra_img 2 --reset_train").expect("legal");
    assert_eq!(options.warnings.len(), 4, "{:?}", options.warnings);
}

#[test]
fn the_numbers_of_a_run_stay_and_its_length_may_change() {
    let begun = of("--seed 3").expect("legal").stored();
    let longer = of("--seed 3 --num_epochs 9 --learning_rate 1e-5 --lr_update 2 --log_step 1 --val_step 7");
    longer.expect("legal").goes_on(&begun).expect("more of the same");
    let other = of("--seed 4 --direction t2i --precision f16").expect("legal");
    let error = other.goes_on(&begun).expect_err("another run").to_string();
    for part in
        ["--seed 3", "--direction i2t", "--precision f32", "--seed 4", "--direction t2i", "--precision f16"]
    {
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn every_system_knows_its_own_options_and_whose_the_others_are() {
    for kind in kinds() {
        let line = format!("--system {}", kind.name);
        let options = of(&line).expect("its defaults are sound");
        assert_eq!(options.stored()["system"], kind.name);
        for other in kinds().iter().filter(|other| other.name != kind.name) {
            let own = command(*other);
            let only = own.get_arguments().filter_map(clap::Arg::get_long).find(|long| {
                command(kind).get_arguments().all(|arg| {
                    let aliases = arg.get_all_aliases().unwrap_or_default();
                    !arg.get_long().is_some_and(|l| l.starts_with(long))
                        && !aliases.iter().any(|a| a.starts_with(long))
                })
            });
            let only = only.expect("each system has options of its own");
            let error = of(&format!("{line} --{only} 1")).expect_err("another system's").to_string();
            assert!(error.contains(&format!("an option of {}", other.name)), "{error}");
        }
    }
}

#[test]
fn the_last_value_of_an_option_counts_in_every_spelling() {
    let args: Vec<OsString> = ["--system", "a", "--syst=b", "x", "--resume", "r"].map(Into::into).to_vec();
    assert_eq!(value_of(&args, "system"), Some("b".into()));
    assert_eq!(value_of(&args, "resume"), Some("r".into()));
    assert_eq!(value_of(&args, "config"), None);
    let lists = of("--system hrem --lr_schedules=1,2 --lr_schedules 3 4").expect("legal").stored();
    assert_eq!(lists["lr_schedules"], serde_json::json!([3, 4]));
}
