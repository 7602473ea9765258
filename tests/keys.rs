//! Authors' command lines `with key=value ..`: what they train and evaluate, and what is said of words that mean nothing.

mod tiny;

use std::path::Path;
use std::process::Command;

use serde_json::Value;
use tiny::{Tiny, said};

/// Options of a small model, beside `with`.
const SMALL: &str = "--bert-init random --bert-layers 10 --bert-hidden 8 --bert-heads 2 --bert-intermediate 16 \
    --vocab-size 120 --swin-init random --swin-embed 8 --swin-depths 1,1,1,1 --swin-heads 1,2,2,4 --log_step 1 --max-steps 2";
/// Keys of it.
const KEYS: &str = "data_root=data max_text_len=10 image_size=64 hidden_size=12 per_gpu_batchsize=15";

/// Pictures as the authors have Flickr30K's: `data/f30k` with images and Karpathy's file.
fn pictures() -> Tiny {
    let tiny = Tiny::new().with_pictures();
    std::fs::create_dir(tiny.path("data/f30k")).expect("made");
    for (from, to) in [("images", "images"), ("dataset_tiny.json", "dataset_flickr30k.json")] {
        std::fs::rename(tiny.data().join(from), tiny.path("data/f30k").join(to)).expect("moved");
    }
    tiny
}

/// The options of a run, as its folder has them.
fn options(tiny: &Tiny, run: &str) -> Value {
    description(&tiny.path(run))["options"].clone()
}

fn description(run: &Path) -> Value {
    let text = std::fs::read_to_string(run.join("config.json")).expect("a run");
    serde_json::from_str(&text).expect("JSON")
}

#[track_caller]
fn contains(text: &str, parts: &[&str]) {
    parts.iter().for_each(|part| assert!(text.contains(part), "no {part:?} in {text}"));
}

/// The numbers that evaluation prints.
fn table(out: &str) -> Vec<&str> {
    out.lines().filter(|line| line.contains(" to ")).collect()
}

#[test]
fn keys_train_what_options_train() {
    let tiny = pictures();
    let keys = "direction='t2i' max_epoch=2 learning_rate=1e-3 num_workers=1 test_only=False precision=16 load_path=None \
                vit=swin_base_patch4_window7_224_in22k val_check_interval=1.0 num_gpus=1 batch_size=4096 weight_decay=0.01";
    let line = format!("train --system hat {SMALL} with {KEYS} {keys}");
    let told = tiny.run(&line).with(0).err;
    contains(&told, &["--precision f16", "batch_size does nothing", "weight_decay does nothing"]);
    assert!(!told.contains("load_path") && !told.contains("num_gpus"), "{told}");
    let run = "result/finetune_irtr_f30k";
    let of_keys = options(&tiny, run);
    let wanted: [(&str, Value); 8] = [
        ("direction", "t2i".into()),
        ("batch_size", 15.into()),
        ("num_epochs", 2.into()),
        ("workers", 1.into()),
        ("seed", 0.into()),
        ("precision", "f32".into()),
        ("vocab_size", 120.into()),
        ("data_name", "f30k".into()),
    ];
    for (name, value) in wanted {
        assert_eq!(of_keys[name], value, "{name}");
    }

    // Their names as options, and in a file.
    let file = "system = \"hat\"\ndata_root = \"data\"\ndatasets = \"f30k\"\nper_gpu_batchsize = 15\nmax_epoch = 2\n\
                swin-depths = [1, 1, 1, 1]\nhidden_size = 12\nmax_text_len = 10\nimage_size = 64\nlr_mult_head = 50\n";
    std::fs::write(tiny.path("run.toml"), file).expect("written");
    let line = format!(
        "train {SMALL} --config run.toml --direction t2i --learning_rate 1e-3 --num-workers 1 --log_dir logs --exp_name own \
         --seed 0"
    );
    contains(&tiny.run(&line).with(0).err, &["lr_mult_head does nothing"]);
    let mut same = options(&tiny, "logs/own");
    same["logger_name"] = of_keys["logger_name"].clone();
    assert_eq!(same, of_keys);
    assert_eq!(tiny.steps("logs/own"), tiny.steps(run));

    // What was begun with keys goes on with them.
    let line = format!("train --system hat --max-steps 3 --resume {run} with max_epoch=1");
    tiny.run(&line).with(0);
    assert_eq!((tiny.steps(run).len(), options(&tiny, run)["seed"].clone()), (3, 0.into()));
}

#[test]
fn a_checkpoint_is_tested() {
    let tiny = pictures();
    let line = format!("train --system hat {SMALL} --logger_name run with {KEYS} lambda_softmax=4");
    tiny.run(&line).with(0);
    assert!(!tiny.path("result").exists());
    let plain = tiny.run("evaluate run --data_path data --data_name f30k --split test").with(0).out;
    std::fs::create_dir(tiny.path("tmp")).expect("made");
    let test = |keys: &str| {
        let mut command = tiny.command(&format!("train --system hat {keys}"));
        said(command.env("TMPDIR", tiny.path("tmp")).env("TMP", tiny.path("tmp")))
    };
    assert_eq!(test("with data_root=data test_only=True checkpoint=run").with(0).out, plain);
    let as_options = test("--test_only --checkpoint run/model.safetensors").with(0).out;
    assert_eq!(table(&as_options), table(&plain));
    contains(
        &test("with data_root=data test_only=True checkpoint=run direction=t2i").with(2).err,
        &["direction", "i2t", "t2i"],
    );
    contains(&test("with data_root=data test_only=True").with(2).err, &["checkpoint=RUN"]);
    contains(&test("with data_root=data test_only=True checkpoint=nowhere").with(2).err, &["nowhere"]);

    // COCO's set and the data's other folder.
    std::fs::rename(tiny.path("data/f30k"), tiny.path("data/coco")).expect("moved");
    let of_coco = test("with coco_config data_root=data test_only=True checkpoint=run").with(0);
    assert_eq!(table(&of_coco.out), table(&plain));
    contains(&of_coco.err, &["--folds 5"]);

    // A file of weights under the authors' names, which the options describe.
    std::fs::create_dir(tiny.path("bert")).expect("made");
    let bert = description(&tiny.path("run"))["bert_config"].clone();
    std::fs::copy(tiny.path("run/model.safetensors"), tiny.path("hat.ckpt")).expect("copied");
    let file = "with coco_config data_root=data test_only=True checkpoint=hat.ckpt direction=i2t image_size=64 max_text_len=10";
    contains(&test(file).with(2).err, &["--bert_path"]);
    std::fs::write(tiny.path("bert/config.json"), bert.to_string()).expect("written");
    std::fs::copy(tiny.path("run/vocab.txt"), tiny.path("bert/vocab.txt")).expect("copied");
    contains(
        &test(&format!("--bert_path bert {file}")).with(2).err,
        &["lambda_softmax", "import -- hat hat.ckpt"],
    );
    let of_file = test(&format!("{file} bert_path=bert lambda_softmax=4")).with(0);
    assert_eq!(table(&of_file.out), table(&plain));
    contains(&of_file.out, &["tmp"]);
    assert_eq!(std::fs::read_dir(tiny.path("tmp")).expect("a folder").count(), 0);
}

#[test]
fn words_that_mean_nothing_are_named() {
    let tiny = Tiny::new();
    let cases = [
        ("with", &["nothing follows"][..]),
        ("with data_root=D cocoa_config", &["with cocoa_config", "coco_config", "key=value"]),
        ("with data_root", &["with data_root", "no ="]),
        ("with dataroot=D", &["with dataroot=D", "no such option", "--help"]),
        ("with extra_stc=1", &["with extra_stc=1", "dime"]),
        ("with data_root=D data_root=E", &["with data_root=E", "twice"]),
        ("with data_root=D data_path=E", &["with data_path=E", "twice"]),
        ("with coco_config coco_config", &["twice"]),
        ("with data_root=", &["no value"]),
        ("with =D", &["no key"]),
        ("with data_root='D", &["quotes"]),
        ("with data_root=D --seed 3", &["with --seed", "before `with`"]),
        ("with resume=run", &["--resume", "before `with`"]),
        ("with max_epoch=many", &["with max_epoch=many", "invalid"]),
        ("with max_epoch=None", &["None", "max_epoch"]),
        ("with test_only=maybe", &["test_only", "True or False"]),
        ("with datasets=['f30k','coco']", &["datasets", "a number or a string"]),
        ("with num_gpus=2", &["num_gpus", "per_gpu_batchsize"]),
        ("with val_check_interval=0.5", &["val_check_interval", "--val_step"]),
        ("with vocab_size=120", &["vocab_size", "30522", "--bert_path"]),
        ("with vit=swin_large", &["vit", "--swin_path"]),
        ("with precision=64", &["precision=64", "--precision f16"]),
        ("with direction=both", &["direction", "i2t, t2i"]),
        ("--num_gpus 2", &["num_gpus", "per_gpu_batchsize"]),
    ];
    for (words, parts) in cases {
        let err = tiny.run(&format!("train --system hat {words}")).with(2).err;
        contains(&err, parts);
        assert!(
            err.starts_with("error: ") && (err.contains("\n  ") || err.contains("invalid")),
            "{words}: {err}"
        );
    }
    contains(&tiny.run("train with data_root=D").with(2).err, &["hat", "dime", "--system hat"]);
    // A folder may have that name.
    let err = tiny.run("train --system hat --logger_name with --learning_rate -1").with(2).err;
    contains(&err, &["learning_rate", "above 0"]);
}

/// What a machine's file system takes as a name need not be text.
#[cfg(unix)]
#[test]
fn paths_need_not_be_text() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    let mut command = Command::new(tiny::PROGRAM);
    command
        .args(["train", "--system", "hat", "with", "max_epoch=1"])
        .arg(OsStr::from_bytes(b"data_root=/no\xff/data"));
    let err = said(&mut command).with(2).err;
    assert!(err.contains("/data/f30k") && !err.contains("key"), "{err}");
}

#[test]
fn help_shows_their_form() {
    let tiny = Tiny::new();
    let out = tiny.run("train --system hat --help").with(0).out;
    contains(
        &out,
        &[
            "with data_root=data/",
            "coco_config",
            "--test_only",
            "--log_dir",
            "data_root",
            "finetune_irtr_f30k",
        ],
    );
    assert!(!out.contains("their_"), "{out}");
}
