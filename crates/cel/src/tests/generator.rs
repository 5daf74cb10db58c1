//! Generates expressions of all kinds, most of them well typed, over one document.

/// A document with values of all types.
pub(super) const DOCUMENT: &str = r#"{
  "i": 7, "n": -3, "z": 0, "u": 18446744073709551615, "d": 1.5, "w": 2.0, "s": "héllo wörld", "e": "", "b": true, "none": null,
  "t": "2025-11-08T14:00:00.5+02:00", "p": "1h30m", "q": "1Gi", "v": "1.2.3-rc.1", "ip": "10.1.2.3", "c": "10.0.0.0/8",
  "url": "https://u:p@a.example:8080/a%20b/c?x=1&y=%20z&x=2", "li": [3, 1, 2, 3], "ls": ["b", "a", "c", "a"], "ld": [1.5, -2.25, 0.25],
  "lm": [{"k": "a", "v": 1}, {"k": "b", "v": 2}, {"k": "c"}], "m": {"a": 1, "b": 2, "c d": 3}, "mm": {"x": {"y": "z"}}
}"#;

/// The type of a generated expression.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Yields {
    Bool,
    Int,
    Uint,
    Double,
    String,
    Bytes,
    Timestamp,
    Duration,
    Ints,
    Strings,
    Doubles,
    Map,
    OptionalInt,
    OptionalString,
    Quantity,
    Url,
    Ip,
    Cidr,
    Semver,
    Type,
    Dyn,
}

use Yields::{
    Bool, Bytes, Cidr, Double, Doubles, Duration, Dyn, Int, Ints, Ip, Map, OptionalInt, OptionalString, Quantity,
    Semver, String as Text, Strings, Timestamp, Type, Uint, Url,
};

/// Templates. `$` with a letter is replaced by a part of the type that the letter selects, `@` by the macro's variable.
#[rustfmt::skip]
const TEMPLATES: &[(Yields, &[&str])] = &[
    (Bool, &[
        "true", "false", "dyn(object.b)", "$b && $b", "$b || $b", "!($b)", "($b ? $b : $b)", "$i == $i", "$i != $i", "$i < $i", "$i >= $d",
        "$d < $i", "$d == $d", "$u > $i", "$u == $u", "$s == $s", "$s < $s", "$s != $s", "$y == $y", "$y < $y", "$t == $t", "$t < $t",
        "$r <= $r", "$I == $I", "$S == $S", "$m == $m", "$i in $I", "$s in $S", "$s in $m", "$I.all(@, $i > $i)", "$I.exists(@, @ > $i)",
        "$S.exists_one(@, @ == $s)", "$S.all(@, $b)", "$I.all(@, @w, @ < @w)", "$m.exists(@, @w, @w == $i)", "$m.all(@, @ != $s)",
        "$s.startsWith($s)", "$s.endsWith($s)", "$s.contains($s)", "$s.matches($p)", "matches($s, $p)", "$s.matches($s)", "bool($s)",
        "isURL($s)", "isIP($s)", "isCIDR($s)", "isQuantity($s)", "isSemver($s)", "isSemver($s, $b)", "$q.isLessThan($q)", "$q == $q",
        "$q.isInteger()", "$v.isGreaterThan($v)", "$v == $v", "$p4.isLoopback()", "$p4.isGlobalUnicast()", "$p4.isUnspecified()",
        "$p4.isLinkLocalUnicast()", "$p4.isLinkLocalMulticast()", "$p4 == $p4", "$c.containsIP($p4)", "$c.containsIP($s)",
        "$c.containsCIDR($c)", "$c == $c", "$I.isSorted()", "$S.isSorted()", "$D.isSorted()", "sets.contains($I, $I)",
        "sets.intersects($S, $S)", "sets.equivalent($I, $I)", "$oi.hasValue()", "$os.hasValue()", "$oi == $oi", "$x == $x", "$I.includes($i)",
        "has(object.$f)", "has(object.mm.x)", "has(object.mm.$f)", "$k == $s", "$k < $i", "$T == $T", "$k in $I", "ip.isCanonical($s)",
        "$url == $url", "format.dns1123Label().validate($s).hasValue()", "format.named($s).hasValue()", "$k == null", "!$b", "!!$b",
    ]),
    (Int, &[
        "0", "1", "2", "-1", "7", "10", "9223372036854775807", "-9223372036854775808", "0x1F", "size($s)", "size($I)", "$S.size()", "$m.size()",
        "size($y)", "$i + $i", "$i - $i", "$i * $i", "$i / $i", "$i % $i", "-($i)", "($b ? $i : $i)", "int($s)", "int($d)", "int($u)",
        "int($t)", "int($r)", "$s.indexOf($s)", "$s.indexOf($s, $i)", "$s.lastIndexOf($s)", "$s.lastIndexOf($s, $i)", "$I.sum()", "$I.min()",
        "$I.max()", "$I.indexOf($i)", "$I.lastIndexOf($i)", "$I[$i]", "$m[$s]", "$m.a", "$t.getFullYear()", "$t.getMonth()",
        "$t.getDayOfYear()", "$t.getDayOfMonth()", "$t.getDate()", "$t.getDayOfWeek()", "$t.getHours()", "$t.getMinutes($z)",
        "$t.getSeconds()", "$t.getMilliseconds()", "$t.getHours($z)", "$t.getDate($z)", "$t.getDayOfYear($z)", "$r.getHours()",
        "$r.getMinutes()", "$r.getSeconds()", "$r.getMilliseconds()", "$oi.orValue($i)", "$oi.value()", "$q.asInteger()", "sign($q)",
        "$q.compareTo($q)", "$v.major()", "$v.patch()", "$v.compareTo($v)", "$p4.family()", "$c.prefixLength()", "int('$n')",
        "$I.first().orValue($i)", "$I.last().value()", "[$i, $i].min()", "dyn(object.i)", "$k",
    ]),
    (Uint, &["0u", "1u", "7u", "18446744073709551615u", "uint($i)", "uint($d)", "uint($s)", "$u + $u", "$u - $u", "$u * $u", "$u / $u", "$u % $u"]),
    (Double, &[
        "0.0", "1.5", "-2.25", "1e10", "1e-7", "123456789.125", "1e21", "5e-324", "$d + $d", "$d - $d", "$d * $d", "$d / $d", "-($d)",
        "double($i)", "double($u)", "double($s)", "$D.sum()", "$D.min()", "$D.max()", "$D[$i]", "$q.asApproximateFloat()", "($b ? $d : $d)",
        "double('$n')", "dyn(object.d)",
    ]),
    (Text, &[
        "''", "'a'", "'abc'", "'héllo'", "'a,b,c'", "'$n'", "'2025-11-08T14:00:00Z'", "'1h'", "'10.0.0.1'", "'::1'", "'1.2.3'", "'v1.2'",
        "'https://a.example/x?y=z'", "'500Mi'", "'A-B_c'", "' x\\t'", "'\\u00e9\\n'", "dyn(object.s)", "dyn(object.ls)[$i]", "$s + $s",
        "($b ? $s : $s)", "string($i)", "string($d)", "string($u)", "string($b)", "string($t)", "string($r)", "string($y)", "string($p4)",
        "string($c)", "$s.charAt($i)", "$s.substring($i)", "$s.substring($i, $i)", "$s.lowerAscii()", "$s.upperAscii()", "$s.trim()",
        "$s.replace($s, $s)", "$s.replace($s, $s, $i)", "$S.join()", "$S.join($s)", "$S[$i]", "$s.find($p)", "$os.orValue($s)",
        "$url.getHost()", "$url.getHostname()", "$url.getPort()", "$url.getScheme()", "$url.getEscapedPath()", "strings.quote($s)",
        "'%s'.format([$s])", "'%s|%s'.format([$i, $d])", "'%s'.format([$I])", "'%s'.format([$m])", "'%s %s'.format([$t, $r])", "'%d'.format([$i])",
        "'%x %X'.format([$i, $s])", "'%b'.format([$i])", "'%o'.format([$u])", "'%.2f'.format([$d])", "'%f'.format([$d])", "'%.3e'.format([$d])",
        "'%s'.format([$b])", "'%s'.format([[$d, $d]])", "'%s'.format([[$s]])", "'%s'.format([$k])", "$S.min()", "$S.first().orValue($s)",
        "'%s'.format([[$t]])", "'%s'.format([$T])", "object.mm.x.y",
    ]),
    (Bytes, &["b''", "b'a'", "b'\\xff'", "b'\\303\\277'", "bytes($s)", "$y + $y", "($b ? $y : $y)"]),
    (Timestamp, &[
        "timestamp('2025-11-08T14:00:00Z')", "timestamp('2024-02-29T23:59:59.999999999Z')", "timestamp('0001-01-01T00:00:00Z')",
        "timestamp('9999-12-31T23:59:59Z')", "timestamp('1969-12-31T23:30:00-01:30')", "timestamp(object.t)", "timestamp($i)", "$t + $r",
        "$t - $r", "$r + $t", "timestamp($s)",
    ]),
    (Duration, &[
        "duration('0')", "duration('1h')", "duration('-90m')", "duration('1.5s')", "duration('3ms')", "duration('1h1m1.001s')",
        "duration(object.p)", "duration($s)", "$r + $r", "$r - $r", "$t - $t",
    ]),
    (Ints, &[
        "[1, 2, 3]", "[]", "[$i, $i]", "[$i]", "dyn(object.li)", "$I + $I", "$I.filter(@, @ > $i)", "$I.map(@, @ + $i)", "$I.map(@, @ > $i, @)",
        "$S.map(@, size(@))", "lists.range($j)", "$I.sort()", "$I.distinct()", "$I.slice($i, $i)", "$I.reverse()", "$I.sortBy(@, -@)",
        "[[$i], [$i, $i]].flatten()", "$I.transformList(@, @w, @ + @w)", "$m.transformList(@, @w, @w > $i, @w).sort()", "[?$oi, $i]",
        "dyn(object.lm).map(@, has(@.v), @.v)", "$m.map(@, $m[@]).sort()",
    ]),
    (Strings, &[
        "['a', 'b', 'c']", "['b', $s]", "[$s]", "dyn(object.ls)", "$S + $S", "$S.filter(@, @ != $s)", "$S.map(@, @ + $s)", "$s.split($s)",
        "$s.split($s, $i)", "$s.findAll($p)", "$s.findAll($p, $i)", "$S.sort()", "$S.distinct()", "$S.reverse()", "$S.sortBy(@, size(@))",
        "$m.map(@, @).sort()", "dyn(object.lm).map(@, @.k)", "[?$os]", "$I.map(@, string(@))", "$S.slice($i, $i)", "$I.transformList(@, @w, string(@w))",
    ]),
    (Doubles, &["[1.5, -0.5]", "[$d, $d]", "dyn(object.ld)", "$D.sort()", "$D.reverse()", "$D.map(@, @ * 2.0)", "$I.map(@, double(@))"]),
    (Map, &[
        "{'a': 1, 'b': 2}", "{'a': $i}", "{$s: $i}", "dyn(object.m)", "$m.transformMap(@, @w, @w + $i)", "$m.transformMap(@, @w, @w > $i, @w)",
        "{?'a': $oi, 'z': $i}", "$m.transformMapEntry(@, @w, {@ + 'x': @w})", "$S.transformMapEntry(@, @w, {@w: @})",
    ]),
    (OptionalInt, &[
        "optional.none()", "optional.of($i)", "optional.ofNonZeroValue($i)", "$m[?$s]", "$m.?a", "$m.?zz", "$I[?$i]", "$I.first()", "$I.last()",
        "$oi.or($oi)", "$oi.optMap(@, @ + $i)", "$oi.optFlatMap(@, optional.of(@ - 1))", "dyn(object.?m).?a", "object.?m.?none", "object.?$f",
    ]),
    (OptionalString, &[
        "optional.of($s)", "optional.ofNonZeroValue($s)", "$S[?$i]", "$S.first()", "$os.or($os)", "$oi.optMap(@, string(@))", "object.?mm.?x.?y",
        "object.?s", "object.?mm.x.y",
    ]),
    (Quantity, &[
        "quantity('1Gi')", "quantity('500m')", "quantity('1.5')", "quantity('-3k')", "quantity('1e3')", "quantity('0')", "quantity(object.q)",
        "quantity('$n')", "$q.add($q)", "$q.sub($q)", "$q.add($i)", "quantity('0.0000000001')",
    ]),
    (Url, &[
        "url('https://a.example:80/x%20y/z?q=1#f')", "url('/a/b?c')", "url('http://[::1]:8080/')", "url('mailto:x@y')", "url(object.url)", "url($s)",
        "url('HTTP://A.example')",
    ]),
    (Ip, &["ip('10.0.0.1')", "ip('::1')", "ip('fe80::1')", "ip('224.0.0.1')", "ip(object.ip)", "$c.ip()", "ip($s)", "ip('127.0.0.1')", "ip('0:0:0:0:0:0:0:0')"]),
    (Cidr, &["cidr('10.0.0.0/8')", "cidr('10.1.2.3/16')", "cidr('::/0')", "cidr('fe80::/10')", "cidr(object.c)", "$c.masked()", "cidr('0.0.0.0/0')"]),
    (Semver, &["semver('1.2.3')", "semver('1.2.3-rc.1')", "semver('1.10.0+b')", "semver(object.v)", "semver('v1.2', true)", "semver('01.02', true)", "semver($s, $b)"]),
    (Type, &["type($i)", "type($s)", "type($k)", "type($m)", "int", "string", "type($oi)", "type($t)", "google.protobuf.Duration", "list", "type(int)"]),
    (Dyn, &[
        "object.$f", "dyn($i)", "dyn($s)", "dyn($d)", "object.mm.x", "object[$s]", "object.li[$i]", "object.lm[$i].v", "$k + $k", "dyn($u)",
        "object.lm.filter(@, @.k == $s)", "{'x': $k}", "[$k]", "object.i", "object.u", "object.w", "($b ? $k : $k)",
    ]),
];

const FIELDS: &[&str] = &["i", "n", "z", "u", "d", "w", "s", "e", "b", "none", "t", "li", "ls", "m", "mm", "zz"];
const PATTERNS: &[&str] = &[
    r"'^[a-c]+$'",
    r"'l+'",
    r"r'\w+'",
    r"r'\d+'",
    r"r'\s'",
    r"r'\bw'",
    r"r'[^\w]'",
    r"'(a|b)*c?'",
    r"'(?i)HÉ'",
    r"'.'",
    r"''",
    r"r'^\w{1,63}$'",
    r"'[[:alpha:]]+'",
    r"'x{2,3}'",
    r"'a{'",
    r"r'\pL'",
    r"'[a-]'",
    r"'o.*?w'",
    r"r'[\d\-.]+'",
];
const NUMBERS: &[&str] = &[
    "0",
    "12",
    "-7",
    "1.5",
    "1e5",
    "007",
    "+3",
    "1_000",
    "9999999999999999999",
    "0x10",
    "1e400",
    "Inf",
    "nan",
    ".5",
    "1.",
    "100k",
    ".",
    "-",
    "Ki",
    "1E",
    "12e-2",
    "5u",
    "3Ei",
    "1e-3",
    " 1",
];
const ZONES: &[&str] = &[
    "'UTC'",
    "''",
    "'America/New_York'",
    "'Europe/Berlin'",
    "'Asia/Kolkata'",
    "'+02:00'",
    "'-05:30'",
    "'07:00'",
    "'Nowhere/X'",
];

/// xorshift64*
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(2_685_821_657_736_338_717) | 1)
    }

    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(2_685_821_657_736_338_717) >> 33) as usize % bound
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    pub(super) fn expression(&mut self) -> String {
        let (yields, _) = self.pick(TEMPLATES);
        let depth = 1 + self.below(4);
        self.part(yields, depth, 0)
    }

    fn part(&mut self, yields: Yields, depth: usize, macros: usize) -> String {
        let templates = TEMPLATES.iter().find(|(of, _)| *of == yields).map_or(&[][..], |(_, templates)| templates);
        let leaves: Vec<&str> = templates.iter().copied().filter(|template| !template.contains('$')).collect();
        let template = if depth == 0 && !leaves.is_empty() { self.pick(&leaves) } else { self.pick(templates) };
        let depth = depth.saturating_sub(1);
        let macros = macros + usize::from(template.contains('@'));
        let mut text = String::new();
        let mut rest = template;
        while let Some(c) = rest.chars().next() {
            rest = &rest[c.len_utf8()..];
            match c {
                '@' => {
                    text.extend(["x", &macros.to_string()]);
                }
                '$' => {
                    let names: [(&str, Option<Yields>); 25] = [
                        ("p4", Some(Ip)),
                        ("oi", Some(OptionalInt)),
                        ("os", Some(OptionalString)),
                        ("url", Some(Url)),
                        ("b", Some(Bool)),
                        ("i", Some(Int)),
                        ("u", Some(Uint)),
                        ("d", Some(Double)),
                        ("s", Some(Text)),
                        ("y", Some(Bytes)),
                        ("t", Some(Timestamp)),
                        ("r", Some(Duration)),
                        ("I", Some(Ints)),
                        ("S", Some(Strings)),
                        ("D", Some(Doubles)),
                        ("m", Some(Map)),
                        ("q", Some(Quantity)),
                        ("c", Some(Cidr)),
                        ("v", Some(Semver)),
                        ("T", Some(Type)),
                        ("k", Some(Dyn)),
                        ("x", Some(Dyn)),
                        ("f", None),
                        ("p", None),
                        ("n", None),
                    ];
                    if let Some(after) = rest.strip_prefix('z') {
                        text += self.pick(ZONES);
                        rest = after;
                        continue;
                    }
                    if let Some(after) = rest.strip_prefix('j') {
                        text += self.pick(&["0", "1", "5", "-1"]);
                        rest = after;
                        continue;
                    }
                    let (name, part) = names.into_iter().find(|(name, _)| rest.starts_with(name)).unwrap();
                    rest = &rest[name.len()..];
                    match (name, part) {
                        ("f", _) => text += self.pick(FIELDS),
                        ("p", _) => text += self.pick(PATTERNS),
                        ("n", _) => text += self.pick(NUMBERS),
                        (_, Some(part)) => {
                            let inner = self.part(part, depth, macros);
                            // A part before an operator needs parentheses.
                            let simple = inner
                                .chars()
                                .all(|c| c.is_alphanumeric() || matches!(c, '_' | '\'' | '.' | '(' | ')' | '[' | ']'))
                                || inner.ends_with(')') && !inner.contains(' ');
                            if simple && !inner.starts_with('-') {
                                text += &inner;
                            } else {
                                text.extend(["(", &inner, ")"]);
                            }
                        }
                        _ => {}
                    }
                }
                c => text.push(c),
            }
        }
        text
    }
}
