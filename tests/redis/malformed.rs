//! What may stand where a job is expected and is none, and what is odd and yet one, in both layouts.

/// So much garbage as a client may well send by mistake.
const MUCH: usize = 1 << 20;

/// What is no job, each once.
pub(crate) fn malformed() -> Vec<Vec<u8>> {
    let mut all: Vec<Vec<u8>> = [
        // No JSON.
        &b""[..],
        b" ",
        b" \r\n\t ",
        b"no JSON",
        b"\0",
        b"\0\0{\"class\":\"A\",\"args\":[]}",
        b"{\"class\":\"A\",\"args\":[]}\0",
        b"\xff\xfe\x00{",
        b"\xef\xbb\xbf{\"class\":\"A\",\"args\":[]}",
        b"{\"class\":\"A\",\"args\":[1",
        b"{\"class\":\"A\",\"args\":[1,]}",
        b"{\"class\":\"A\",\"args\":[],}",
        b"{\"class\":\"A\",\"args\":[]}{\"class\":\"A\",\"args\":[]}",
        b"{\"class\":\"A\",\"args\":[]}\r\n*1\r\n$8\r\nFLUSHALL\r\n",
        b"{'class':'A','args':[]}",
        b"{\"class\":\"A\",\"args\":[01]}",
        b"{\"class\":\"A\",\"args\":[NaN]}",
        b"---\n:class: A\n",
        b"\x04\x08{\x06:\nclassI\"\x06A\x06:\x06ET",
        // No object.
        b"null",
        b"true",
        b"-7.5e3",
        b"\"class\"",
        b"[]",
        b"[{\"class\":\"A\",\"args\":[]}]",
        // No class.
        b"{}",
        b" {} ",
        b"{\"args\":[]}",
        b"{\"jid\":\"a\",\"queue\":\"default\",\"args\":[],\"created_at\":1795248280000}",
        b"{\"class\":null,\"args\":[]}",
        b"{\"class\":\"\",\"args\":[]}",
        b"{\"class\":5,\"args\":[]}",
        b"{\"class\":{\"class\":\"A\"},\"args\":[]}",
        b"{\"class\":[\"A\"],\"args\":[]}",
        b"{\"class\":\"A\",\"class\":7,\"args\":[]}",
        b"{\"class\":\"\\ud800\",\"args\":[]}",
        b"{\"class\":\"caf\xe9\",\"args\":[]}",
        // What stands in our own field is none of ours.
        b"{\"class\":\"A\",\"args\":[],\"tidegate\":7}",
        b"{\"tidegate\":{\"unique\":7},\"class\":\"A\",\"args\":[]}",
        b"{\"tidegate\":{\"payload\":\"base64\"},\"class\":\"A\",\"args\":[\"!\"]}",
        b"{\"tidegate\":{\"payload\":\"unheard of\"},\"class\":\"A\",\"args\":[]}",
    ]
    .map(<[u8]>::to_vec)
    .to_vec();
    all.push(nested(100_000, false));
    all.push([b"{\"class\":\"A\",\"args\":", &nested(1_000, true)[..], b"}"].concat());
    all.push(format!("{{\"class\":{},\"args\":[]}}", "9".repeat(400)).into_bytes());
    all.push([b"{\"class\":\"A\",\"args\":[\"", &vec![b'x'; MUCH][..]].concat());
    // Every byte there is, in an order that never comes again.
    all.push((0..MUCH as u64).map(|place| (place.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect());
    all
}

fn nested(depth: usize, closed: bool) -> Vec<u8> {
    ["[".repeat(depth), "]".repeat(if closed { depth } else { 0 })].concat().into_bytes()
}

/// Jobs of the class `Odd`, which nobody would write so by hand.
pub(crate) fn odd() -> Vec<Vec<u8>> {
    let fields = [
        // Of two fields of a name the last counts.
        r#""class":7,"class":"Odd","queue":"main","args":[1]"#.to_owned(),
        r#""class":"Odd","queue":"main","args":{"an":"object"}"#.to_owned(),
        r#""class":"Odd","queue":"main","args":null"#.to_owned(),
        r#""class":"Odd","queue":"main""#.to_owned(),
        r#""cl\u0061ss":"Odd","queue":"main","args":["\u0000\ud83e\udd80"]"#.to_owned(),
        format!(r#""class":"Odd","queue":"main","args":[{}]"#, "9".repeat(400)),
        format!(r#""class":"Odd","queue":"main","args":["{}"]"#, "x".repeat(MUCH)),
        r#""class":"Odd","queue":"main","args":[],"jid":[],"retry":{},"created_at":"x","retry_count":-1e999"#
            .to_owned(),
    ];
    let mut all: Vec<Vec<u8>> = fields.map(|fields| format!("{{{fields}}}").into_bytes()).to_vec();
    all.push(b"\n {\"class\" :\"Odd\",\t\"queue\": \"main\", \"args\":[\"caf\xe9\"] }\r\n".to_vec());
    all
}

/// All of both, one among the other.
pub(crate) fn mixed() -> Vec<Vec<u8>> {
    let (mut odd, mut mixed) = (odd().into_iter(), Vec::new());
    for (place, one) in malformed().into_iter().enumerate() {
        mixed.push(one);
        if place % 4 == 0 {
            mixed.extend(odd.next());
        }
    }
    mixed.extend(odd);
    mixed
}
