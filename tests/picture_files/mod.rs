//! Small PNG and JPEG files of kinds that encoders do not write.

#![allow(dead_code, reason = "no test uses all of them")]

/// A TIFF block that holds an orientation only.
pub fn exif(orientation: u16, big_endian: bool) -> Vec<u8> {
    let two = |v: u16| if big_endian { v.to_be_bytes() } else { v.to_le_bytes() };
    let four = |v: u32| if big_endian { v.to_be_bytes() } else { v.to_le_bytes() };
    let mut out = if big_endian { b"MM".to_vec() } else { b"II".to_vec() };
    out.extend(two(42));
    out.extend(four(8));
    out.extend(two(1));
    out.extend([two(0x112), two(3)].concat());
    out.extend(four(1));
    out.extend([two(orientation), two(0)].concat());
    out.extend(four(0));
    out
}

fn crc(bytes: &[u8]) -> u32 {
    let mut crc = !0_u32;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 };
        }
    }
    !crc
}

fn adler(bytes: &[u8]) -> u32 {
    let (mut a, mut b) = (1_u32, 0_u32);
    for byte in bytes {
        a = (a + u32::from(*byte)) % 65521;
        b = (b + a) % 65521;
    }
    b << 16 | a
}

/// A chunk of a PNG.
pub fn chunk(name: &[u8; 4], body: &[u8]) -> Vec<u8> {
    let named = [name.as_slice(), body].concat();
    [&(body.len() as u32).to_be_bytes()[..], &named, &crc(&named).to_be_bytes()].concat()
}

/// A PNG of these rows, whose samples are packed as its kind has them; `more` goes before the pixels.
pub fn png(sides: [u32; 2], depth: u8, colour: u8, more: &[(&[u8; 4], &[u8])], rows: &[&[u8]]) -> Vec<u8> {
    let mut head = sides.map(u32::to_be_bytes).concat();
    head.extend([depth, colour, 0, 0, 0]);
    let mut out = b"\x89PNG\r\n\x1a\n".to_vec();
    out.extend(chunk(b"IHDR", &head));
    more.iter().for_each(|(name, body)| out.extend(chunk(name, body)));
    let raw: Vec<u8> = rows.iter().flat_map(|row| [&[0][..], row].concat()).collect();
    let mut zlib = vec![0x78, 0x01];
    for part in raw.chunks(0xffff) {
        zlib.push(0);
        zlib.extend((part.len() as u16).to_le_bytes());
        zlib.extend((!(part.len() as u16)).to_le_bytes());
        zlib.extend(part);
    }
    // The last, empty block.
    zlib.extend([1, 0, 0, 0xff, 0xff]);
    zlib.extend(adler(&raw).to_be_bytes());
    out.extend(chunk(b"IDAT", &zlib));
    out.extend(chunk(b"IEND", b""));
    out
}

/// A JPEG whose blocks of 8 x 8 pixels have one level each.
#[derive(Clone, Default)]
pub struct Jpeg {
    pub sides: [u16; 2],
    /// Of each component: its id, and the level of each block, row by row: as many as cover whole groups of
    /// blocks.
    pub components: Vec<(u8, Vec<u8>)>,
    /// Of each component: blocks of a group across and down; where there is nothing, one.
    pub sampling: Vec<[usize; 2]>,
    /// What Adobe's marker calls the colours.
    pub adobe: Option<u8>,
    pub exif: Option<Vec<u8>>,
    pub progressive: bool,
    /// A scan a component.
    pub apart: bool,
}

impl Jpeg {
    /// One block of these levels, with the ids 1, 2, ..
    pub fn of(levels: &[u8]) -> Self {
        let components = (1..).zip(levels.iter().map(|level| vec![*level])).collect();
        Self { sides: [8, 8], components, ..Self::default() }
    }

    pub fn adobe(self, colours: u8) -> Self {
        Self { adobe: Some(colours), ..self }
    }

    pub fn progressive(self) -> Self {
        Self { progressive: true, ..self }
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut out = b"\xff\xd8".to_vec();
        let mut segment = |marker: u8, body: &[u8]| {
            out.extend([0xff, marker]);
            out.extend((body.len() as u16 + 2).to_be_bytes());
            out.extend(body);
        };
        if let Some(exif) = &self.exif {
            segment(0xe1, &[b"Exif\0\0".as_slice(), exif].concat());
        }
        if let Some(colours) = self.adobe {
            segment(0xee, &[b"Adobe\0\x64\0\0\0\0".as_slice(), &[colours]].concat());
        }
        segment(0xdb, &[&[0][..], &[1; 64]].concat());
        let [width, height] = self.sides.map(u16::to_be_bytes);
        let mut frame = [&[8][..], &height, &width, &[self.components.len() as u8]].concat();
        for (c, (id, _)) in self.components.iter().enumerate() {
            let [across, down] = self.sampling(c);
            frame.extend([*id, (16 * across + down) as u8, 0]);
        }
        segment(if self.progressive { 0xc2 } else { 0xc0 }, &frame);
        // Twelve sizes of a difference in four bits each, and one bit for a block's end.
        let mut sizes = [0; 17];
        sizes[4] = 12;
        segment(0xc4, &[&sizes[..], &(0..12).collect::<Vec<u8>>()].concat());
        let mut end = [0; 17];
        (end[0], end[1]) = (0x10, 1);
        segment(0xc4, &[&end[..], &[0]].concat());
        for scan in self.scans() {
            let mut head = vec![scan.components.len() as u8];
            scan.components.iter().for_each(|c| head.extend([self.components[*c].0, 0]));
            head.extend([scan.from, scan.to, 0]);
            out.extend([0xff, 0xda]);
            out.extend((head.len() as u16 + 2).to_be_bytes());
            out.extend(head);
            out.extend(self.data(&scan));
        }
        out.extend(b"\xff\xd9");
        out
    }

    fn scans(&self) -> Vec<Scan> {
        let all: Vec<usize> = (0..self.components.len()).collect();
        let each = all.iter().map(|c| vec![*c]).collect::<Vec<_>>();
        let scan = |from, to| move |components| Scan { components, from, to };
        if self.progressive {
            let rest = each.into_iter().map(scan(1, 63));
            return std::iter::once(scan(0, 0)(all)).chain(rest).collect();
        }
        if self.apart { each.into_iter().map(scan(0, 63)).collect() } else { vec![scan(0, 63)(all)] }
    }

    fn sampling(&self, component: usize) -> [usize; 2] {
        self.sampling.get(component).copied().unwrap_or([1, 1])
    }

    /// Blocks across and down that a group has of the component with most.
    fn most(&self) -> [usize; 2] {
        [0, 1].map(|side| self.sampling.iter().map(|s| s[side]).max().unwrap_or(1))
    }

    /// Groups of blocks across and down.
    pub fn groups(&self) -> [usize; 2] {
        let most = self.most();
        [0, 1].map(|side| usize::from(self.sides[side]).div_ceil(8 * most[side]))
    }

    /// The component and number of every block, in a scan's order, up to the first without a level.
    fn blocks(&self, scan: &Scan) -> Vec<(usize, usize)> {
        let (most, groups) = (self.most(), self.groups());
        let known = |(c, block): &(usize, usize)| *block < self.components[*c].1.len();
        if let [c] = *scan.components {
            // Those that only fill up a group are left out.
            let of = self.sampling(c);
            let n = [0, 1].map(|s| (usize::from(self.sides[s]) * of[s]).div_ceil(most[s]).div_ceil(8));
            let all = (0..n[0] * n[1]).map(|i| (c, i / n[0] * groups[0] * of[0] + i % n[0]));
            return all.take_while(known).collect();
        }
        let of_group = |group: usize| {
            let [gx, gy] = [group % groups[0], group / groups[0]];
            scan.components.iter().flat_map(move |&c| {
                let [h, v] = self.sampling(c);
                (0..h * v).map(move |i| (c, (gy * v + i / h) * groups[0] * h + gx * h + i % h))
            })
        };
        (0..groups[0] * groups[1]).flat_map(of_group).take_while(known).collect()
    }

    fn data(&self, scan: &Scan) -> Vec<u8> {
        let mut bits = Vec::new();
        let mut put = |value: u32, n: u32| (0..n).rev().for_each(|i| bits.push((value >> i & 1) as u8));
        let mut before = vec![0; self.components.len()];
        for (c, block) in self.blocks(scan) {
            if scan.from == 0 {
                let level = (i32::from(self.components[c].1[block]) - 128) * 8;
                let difference = level - before[c];
                before[c] = level;
                let size = 32 - difference.unsigned_abs().leading_zeros();
                put(size, 4);
                let value = if difference < 0 { difference - 1 } else { difference };
                put(value as u32 & ((1 << size) - 1), size);
            }
            if scan.to > 0 {
                put(0, 1);
            }
        }
        let byte = |bits: &[u8]| (0..8).fold(0, |byte, i| byte << 1 | bits.get(i).copied().unwrap_or(1));
        let stuffed = |byte: u8| if byte == 0xff { vec![0xff, 0] } else { vec![byte] };
        bits.chunks(8).flat_map(|bits| stuffed(byte(bits))).collect()
    }
}

struct Scan {
    components: Vec<usize>,
    from: u8,
    to: u8,
}
