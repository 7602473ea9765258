// What the kernels of gated recurrent units share: which unit of which state an invocation owns.
struct Params {
    count: u32, // directions * captions * width
    width: u32, // of a state, in T
    captions: u32,
    words: u32,
    directions: u32,
    step: u32,
}

struct Unit {
    unit: u32,
    caption: u32,
    direction: u32,
}

fn unit_of(i: u32, p: Params) -> Unit {
    return Unit(i % p.width, i / p.width % p.captions, i / p.width / p.captions);
}

struct Word {
    len: u32, // words of the caption
    inside: bool, // whether the step is within them
    place: u32, // of the step's word and direction: the second one begins at the caption's end
}

fn word_of(own: Unit, length: f32, p: Params) -> Word {
    let len = min(u32(length), p.words);
    let inside = p.step < len;
    let word = select(p.step, len - 1u - p.step, inside && own.direction == 1u);
    return Word(len, inside, (own.caption * p.words + word) * p.directions + own.direction);
}
