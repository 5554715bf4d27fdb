use super::super::concrete::Concrete;
use super::super::domain::Domain;
use super::*;

/// A seeded generator: what fails once fails again.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }
    fn below(&mut self, end: u64) -> u64 {
        (self.next() >> 8) % end
    }
    /// Numbers as code has them: masks, small ones, negative ones, and any.
    fn number(&mut self) -> u64 {
        match self.below(8) {
            0 => 0,
            1 => u64::MAX,
            2 => 1 << self.below(64),
            3 => (1 << self.below(64)) - 1,
            4 => self.below(16),
            5 => self.below(16).wrapping_neg(),
            6 => 0xFF << (8 * self.below(8)),
            _ => self.next(),
        }
    }
}

const NAMES: [(&str, u32); 5] = [("a", 64), ("b", 64), ("c", 32), ("d", 16), ("e", 1)];

/// Terms made of the variables by every operation; the last ones are the deepest.
fn random_terms<D: Domain>(
    d: &D,
    variables: [D::Word; 5],
    seed: u64,
    count: usize,
) -> (Vec<D::Word>, Vec<D::Bit>)
where
    D::Cell: Default,
{
    let mut random = Random(seed | 1);
    let (mut words, mut bits) = (variables.to_vec(), vec![d.bit(true), d.test(variables[0], 7)]);
    for _ in 0..count {
        // Mostly deep ones.
        let mut pick = |len: usize| {
            let from = if random.below(3) == 0 { 0 } else { len.saturating_sub(5) as u64 };
            (from + random.below(len as u64 - from)) as usize
        };
        let (a, b) = (words[pick(words.len())], words[pick(words.len())]);
        let (p, q) = (bits[pick(bits.len())], bits[pick(bits.len())]);
        let (number, by) = (random.number(), random.below(64) as u32);
        let size = 1 << random.below(4);
        match random.below(25) {
            0 => words.push(d.add(a, b)),
            1 => words.push(d.sub(a, b)),
            2 => words.push(d.and(a, b)),
            3 => words.push(d.or(a, b)),
            4 => words.push(d.xor(a, b)),
            5 => words.push(d.shl(a, by)),
            6 => words.push(d.shr(a, by)),
            7 => words.push(d.sar(a, by)),
            8 => words.push(d.select(p, a, b)),
            9 => words.push(d.select(p, a, d.word(number))),
            10 => words.push(d.add(a, d.word(number))),
            11 => words.push(d.and(a, d.word(number))),
            12 => words.push(d.or(a, d.word(number))),
            13 => words.push(d.xor(a, d.word(number))),
            14 => words.push(d.number(p)),
            15 => words.push(d.sign_extend(a, size)),
            16 => words.push(d.truncate(a, size)),
            17 => {
                // Unaligned bytes of two neighbours in memory.
                let mut cells: [D::Cell; 16] = Default::default();
                d.store(&mut cells[..8], a);
                d.store(&mut cells[8..], b);
                let at = by as usize % 8;
                words.push(d.load(&cells[at..at + size]));
            }
            18 => bits.push(d.eq(a, b)),
            19 => bits.push(d.is(d.and(a, d.word(number)), number & 0x10_0203)),
            20 => bits.push(d.lt(a, b)),
            21 => bits.push(d.lt(d.word(number), a)),
            22 => bits.push(d.test(a, by)),
            23 => bits.push(d.both(p, d.not(q))),
            _ => bits.push(d.differ(p, q)),
        }
    }
    (words, bits)
}

impl Default for Word {
    /// Whatever: cells that are yet to be stored to.
    fn default() -> Self {
        Self(0)
    }
}

fn symbolic_variables(d: &Symbolic) -> [Word; 5] {
    NAMES.map(|(name, width)| d.variable(name, width))
}

fn random_model(random: &mut Random) -> [u64; 5] {
    NAMES.map(|(_, width)| random.number() & word::low_bits(width))
}

fn model_of(values: [u64; 5]) -> Model {
    NAMES.iter().zip(values).map(|((name, _), value)| (*name, value)).collect()
}

fn holds(verdict: &Validity) -> bool {
    matches!(verdict, Validity::Holds { .. })
}

#[test]
fn every_operation_computes_what_the_concrete_domain_computes() {
    let mut random = Random(0x5EED);
    for seed in 1..1500_u64 {
        let d = Symbolic::default();
        let (words, bits) =
            random_terms(&d, symbolic_variables(&d), seed.wrapping_mul(0x9E37_79B9), 40);
        for _ in 0..4 {
            let values = random_model(&mut random);
            let model = model_of(values);
            let (numbers, truths) =
                random_terms(&Concrete::default(), values, seed.wrapping_mul(0x9E37_79B9), 40);
            for (&word, &number) in words.iter().zip(&numbers) {
                assert_eq!(d.evaluate(&model, word), number, "seed {seed}: {}", d.display(word));
            }
            for (&bit, &truth) in bits.iter().zip(&truths) {
                assert_eq!(
                    d.evaluate_bit(&model, bit),
                    truth,
                    "seed {seed}: {}",
                    d.display_bit(bit)
                );
            }
        }
    }
}

/// With few enough values, a verdict can be compared with all of them.
#[test]
fn verdicts_about_small_unknowns_are_those_of_all_their_values() {
    let (mut solved, mut refuted, mut asked) = (0, 0, 0);
    for seed in 1..400_u64 {
        let d = Symbolic::default();
        d.recheck_certificates(true);
        let names = ["a", "b"];
        let [a, b] = names.map(|name| d.variable(name, 3));
        let place = |d: &Symbolic, a, b| [a, d.sub(a, b), d.sar(d.shl(b, 61), 61), d.add(a, b), b];
        let (_, bits) = random_terms(&d, place(&d, a, b), seed.wrapping_mul(0xDEAD_BEEF_1235), 25);
        for &bit in &bits[2..] {
            let all = (0..64)
                .all(|i| d.evaluate_bit(&names.into_iter().zip([i & 7, i >> 3]).collect(), bit));
            match d.check(bit) {
                Validity::Holds { .. } => {
                    assert!(all, "seed {seed}: {}", d.display_bit(bit));
                    solved += 1;
                }
                Validity::Fails(model) => {
                    assert!(!all && !d.evaluate_bit(&model, bit), "seed {seed}");
                    refuted += 1;
                }
                Validity::Unknown(why) => panic!("seed {seed}: {why}"),
            }
        }
        // The solver by itself.
        for &bit in &bits[2..] {
            let some = (0..64)
                .any(|i| d.evaluate_bit(&names.into_iter().zip([i & 7, i >> 3]).collect(), bit));
            let answer = d.solver.borrow_mut().ask(&d.pool.borrow(), &[bit]);
            assert_eq!(matches!(answer, solve::Answer::Satisfiable(_)), some, "seed {seed}");
            assert_eq!(matches!(answer, solve::Answer::Unsatisfiable), !some, "seed {seed}");
        }
        asked += d.statistics().solver;
    }
    assert!(solved > 300 && refuted > 1000 && asked > 2000, "{solved} {refuted} {asked}");
}

#[test]
fn a_word_that_went_through_memory_is_the_word() {
    let d = Symbolic::default();
    let x = d.variable("x", 64);
    let mut cells = [d.word(0); 8];
    d.store(&mut cells, x);
    assert_eq!(d.load(&cells), x);
    assert_eq!(d.load(&cells[2..4]), d.truncate(d.shr(x, 16), 2));
    let sum = d.add(d.add(x, d.variable("y", 64)), d.word(3));
    d.store(&mut cells, sum);
    assert_eq!(d.load(&cells), sum);
}

#[test]
fn masks_have_one_form_however_they_were_computed() {
    let d = Symbolic::default();
    let x = d.variable("x", 64);
    let (mask, set) = (d.word(0x25_4FD7), d.word(0x202));
    let form = d.or(d.and(x, mask), set);
    assert_eq!(d.and(d.or(x, set), d.or(mask, set)), form);
    assert_eq!(d.xor(d.xor(form, x), x), form);
    assert_eq!(d.add(d.and(x, d.word(0x25_4DD5)), set), form);
    let other = d.word(!0x25_4FD7);
    assert_eq!(d.sub(d.or(d.sub(x, d.and(x, other)), set), d.word(0)), form);
    assert_eq!(d.display(form), "((x & 0x254dd5) | 0x202)");
}

#[test]
fn operations_of_bits_do_not_depend_on_their_position() {
    let d = Symbolic::default();
    let (x, y) = (d.variable("x", 64), d.variable("y", 64));
    assert_eq!(d.shr(d.and(x, y), 8), d.and(d.shr(y, 8), d.shr(x, 8)));
    assert_eq!(d.truncate(d.or(x, y), 4), d.or(d.truncate(x, 4), d.truncate(y, 4)));
    assert_eq!(d.xor(d.xor(x, d.word(u64::MAX)), y), d.xor(d.xor(x, y), d.word(u64::MAX)));
    assert_eq!(d.and(x, d.xor(x, d.word(u64::MAX))), d.word(0));
    let (a, not_y) = (d.xor(x, y), d.xor(y, d.word(u64::MAX)));
    assert_eq!((d.xor(a, y), d.xor(x, a)), (x, y));
    assert_eq!(d.xor(not_y, a), d.xor(x, d.word(u64::MAX)));
    let p = d.lt(x, y);
    assert_eq!(d.shl(d.select(p, x, y), 5), d.select(d.not(p), d.shl(y, 5), d.shl(x, 5)));
}

#[test]
fn sums_have_one_constant() {
    let d = Symbolic::default();
    let (x, y) = (d.variable("x", 64), d.variable("y", 64));
    assert_eq!(d.plus(d.plus(x, 8), -8), x);
    assert_eq!(d.distance(d.plus(x, 24), d.plus(x, -8)), Some(32));
    assert_eq!(d.distance(x, y), None);
    let aligned = d.mask(x, !0xFFF);
    assert_eq!(d.distance(d.plus(aligned, 0x10), d.plus(aligned, 0x1010)), Some(-0x1000));
    assert_eq!(d.sub(d.plus(d.add(x, y), 5), d.plus(y, 1)), d.plus(x, 4));
    assert_eq!(d.eq(d.plus(x, 1), d.plus(x, 2)), d.bit(false));
    assert_eq!(d.eq(d.plus(x, 1), d.plus(y, 2)), d.eq(d.plus(y, 7), d.plus(x, 6)));
    assert_eq!(d.eq(d.plus(x, 1), d.word(5)), d.is(x, 4));
    assert_eq!(d.is(d.sub(x, y), 0), d.eq(y, x));
}

#[test]
fn what_cannot_carry_into_the_next_byte_is_a_sum() {
    let d = Symbolic::default();
    let low_byte = |word, by| d.or(d.mask(word, !0xFF), d.mask(d.plus(word, by), 0xFF));
    let top = d.plus(d.mask(d.variable("x", 64), !0xF), -48);
    assert_eq!(low_byte(top, 8), d.plus(top, 8));
    assert_eq!(d.distance(low_byte(top, 8), d.plus(top, -8)), Some(16));
    // From here, it may.
    let below = d.plus(top, -8);
    assert_eq!(d.distance(low_byte(below, 8), top), None);
    assert_eq!(d.test(top, 3), d.bit(false));
    assert_eq!(d.test(below, 3), d.bit(true));
}

/// Rounds of a cipher: additions and exclusive ors that nobody sees through.
fn scrambled(d: &Symbolic, mut x: Word, mut y: Word, rounds: usize) -> Word {
    let rotated = |word, by| d.or(d.shl(word, by), d.shr(word, 64 - by));
    for _ in 0..rounds {
        x = d.xor(d.add(rotated(x, 56), y), d.word(0x1234_5678_9ABC));
        y = d.xor(rotated(y, 3), x);
    }
    y
}

#[test]
fn the_solver_gives_up_in_time_and_is_not_asked_for_ever() {
    let d = Symbolic::default();
    let x = d.variable("x", 64);
    let hard = |i: u64| d.not(d.is(scrambled(&d, x, x, 12), i));
    let gave_up = |answer| matches!(answer, Validity::Unknown(why) if why.contains("gave up"));
    for i in 0..u64::from(super::solve::GIVE_UPS) {
        assert!(gave_up(d.check(hard(i))), "{i}");
    }
    let asked = d.statistics().solver;
    assert!(matches!(d.check(hard(99)), Validity::Unknown(why) if why.contains("not asked")));
    assert_eq!(d.statistics().solver, asked);
    // What is plain is known all the same.
    assert!(matches!(d.check(d.eq(x, x)), Validity::Holds { .. }));
    d.try_again();
    assert!(gave_up(d.check(hard(100))));
}

#[test]
fn comparisons_have_one_form() {
    let d = Symbolic::default();
    let (x, y) = (d.variable("x", 64), d.variable("y", 32));
    assert_eq!(d.is(d.mask(x, 0xFF00), 0x1200), d.is(d.mask(d.shr(x, 8), 0xFF), 0x12));
    assert_eq!(d.any(x, 0x40), d.test(x, 6));
    assert_eq!(d.lt(x, d.word(1)), d.is(x, 0));
    assert_eq!(d.lt(x, d.word(1 << 63)), d.not(d.test(x, 63)));
    assert_eq!(d.lt(y, d.word(1 << 32)), d.bit(true));
    assert_eq!(d.eq(x, d.xor(x, d.word(4))), d.bit(false));
    assert_eq!(d.test(d.number(d.lt(x, y)), 0), d.lt(x, y));
    assert_eq!(d.either(d.lt(x, y), d.not(d.lt(x, y))), d.bit(true));
}

#[test]
fn text_is_readable() {
    let d = Symbolic::default();
    let (rcx, rsp) = (d.variable("guest.rcx", 64), d.variable("rsp", 64));
    let p = d.eq(rcx, rsp);
    for (word, text) in [
        (rcx, "guest.rcx"),
        (d.plus(rsp, -0x28), "(rsp - 0x28)"),
        (d.truncate(d.shr(rcx, 8), 1), "guest.rcx[15:8]"),
        (d.or(rcx, rsp), "(guest.rcx | rsp)"),
        (d.select(p, rcx, rsp), "((guest.rcx == rsp) ? guest.rcx : rsp)"),
        (d.word(0x10), "0x10"),
    ] {
        assert_eq!(d.display(word), text);
    }
    assert_eq!(d.display_bit(d.not(d.is(rcx, 0x5A))), "(guest.rcx != 0x5a)");
    assert_eq!(d.display_bit(d.test(rcx, 9)), "guest.rcx[9]");
    assert_eq!(
        d.variables_of_bit(p).iter().map(|name| &**name).collect::<Vec<_>>(),
        ["guest.rcx", "rsp"]
    );
}

/// Whether bits `width - 1` to 63 are all equal.
fn is_canonical(d: &Symbolic, x: Word, width: u32) -> Bit {
    let high = |i| d.test(x, i);
    let all =
        |f: &dyn Fn(u32) -> Bit| (width - 1..64).map(f).fold(d.bit(true), |a, b| d.both(a, b));
    d.either(all(&high), all(&|i| d.not(high(i))))
}

#[test]
fn a_shift_forth_and_back_is_the_canonicality_check() {
    let d = Symbolic::default();
    d.recheck_certificates(true);
    let x = d.variable("x", 64);
    let computed = |width: u32| d.eq(d.sar(d.shl(x, 64 - width), 64 - width), x);
    for (ours, theirs) in [(48, 48), (57, 57)] {
        let goal = d.not(d.differ(computed(ours), is_canonical(&d, x, theirs)));
        assert_eq!(d.check(goal), Validity::Holds { by: By::Solver });
    }
    for (ours, theirs) in [(48, 57), (57, 48)] {
        let goal = d.not(d.differ(computed(ours), is_canonical(&d, x, theirs)));
        let Validity::Fails(model) = d.check(goal) else { panic!("{ours} {theirs}") };
        assert!(!d.evaluate_bit(&model, goal), "{model}");
    }
    assert!(d.statistics().rechecked > 0);
}

#[test]
fn the_solver_refutes_with_a_model() {
    let d = Symbolic::default();
    let (x, y) = (d.variable("x", 64), d.variable("y", 64));
    // No guess finds this: carries.
    d.assume(d.is(d.add(d.add(x, y), d.shl(x, 3)), 0x1234_5678_9ABC_DEF1));
    d.assume(d.is(d.sub(d.shl(y, 1), x), 0x77));
    let goal = d.lt(x, d.word(77));
    let Validity::Fails(model) = d.check(goal) else { panic!() };
    assert!(!d.evaluate_bit(&model, goal));
    let (x, y) = (model.value("x"), model.value("y"));
    assert_eq!(x.wrapping_add(y).wrapping_add(x << 3), 0x1234_5678_9ABC_DEF1);
    assert_eq!((y << 1).wrapping_sub(x), 0x77);
    assert!(d.statistics().solver > 0);
}

#[test]
fn an_exploration_goes_each_feasible_way_once() {
    let d = Symbolic::default();
    let mut seen = Vec::new();
    let explored = d.explore(
        |d| {
            let x = d.variable("x", 8);
            d.assume(d.lt(x, d.word(100)));
            // Never: the assumption says so.
            if d.decide(d.lt(d.word(200), x)) {
                return "impossible";
            }
            if d.decide(d.lt(x, d.word(50))) {
                // Known: a repetition, and what the decision implies.
                assert!(d.decide(d.lt(x, d.word(50))) && d.decide(d.lt(x, d.word(60))));
                if d.decide(d.is(x, 70)) { "impossible" } else { "low" }
            } else if d.decide(d.undefined("CF after MUL", &[])) {
                "high, carry"
            } else {
                "high"
            }
        },
        |path, result| seen.push((path.decisions.iter().filter(|d| !d.implied).count(), result)),
    );
    assert_eq!(explored, Ok(Explored { visited: 3, pruned: 0 }));
    assert_eq!(seen, [(1, "low"), (2, "high, carry"), (2, "high")]);
}

/// Of random programs: a run for each pair of numbers finds the same paths, and each path's goal
/// holds if and only if it does in all runs on the path.
#[test]
fn an_exploration_finds_the_paths_that_concrete_runs_take() {
    fn run<D: Domain<Cell: Default>>(
        d: &D,
        a: D::Word,
        b: D::Word,
        seed: u64,
    ) -> (Vec<bool>, D::Bit) {
        let start = [a, d.sub(a, b), d.sar(d.shl(b, 61), 61), d.add(a, b), b];
        let (_, bits) = random_terms(d, start, seed.wrapping_mul(0xBEEF_1234_5677), 40);
        let (goal, conditions) = (bits[bits.len() - 1], &bits[2..bits.len() - 1]);
        // What is decided next may depend on what was decided.
        let decide = |at: &mut usize| {
            let taken = d.decide(*conditions.get(*at)?);
            *at += if taken { 1 } else { 2 };
            Some(taken)
        };
        let mut at = 0;
        (std::iter::from_fn(|| decide(&mut at)).collect(), goal)
    }
    let (mut paths, mut held) = (0, 0);
    for seed in 1..100_u64 {
        let mut expected = std::collections::BTreeMap::new();
        for i in 0..64 {
            let (path, goal) = run(&Concrete::default(), i & 7, i >> 3, seed);
            *expected.entry(path).or_insert(true) &= goal;
        }
        let d = Symbolic::default();
        let (a, b) = (d.variable("a", 3), d.variable("b", 3));
        let mut found = Vec::new();
        let explored = d.explore(
            |d| run(d, a, b, seed),
            |_, (path, goal)| found.push((path, holds(&d.check(goal)))),
        );
        assert_eq!(explored.map(|explored| explored.visited), Ok(found.len()));
        // Depth first, `true` first.
        assert_eq!(found, expected.into_iter().rev().collect::<Vec<_>>(), "seed {seed}");
        paths += found.len();
        held += found.iter().filter(|path| path.1).count();
    }
    assert!(paths > 200 && held > 30, "{paths} {held}");
}

#[test]
fn goals_are_checked_on_the_path_that_is_visited() {
    let d = Symbolic::default();
    let (x, y) = (d.variable("x", 64), d.variable("y", 64));
    d.assume(d.not(d.eq(x, y)));
    let least = |d: &Symbolic| if d.decide(d.lt(x, y)) { x } else { y };
    let goal = |d: &Symbolic, least| d.both(d.not(d.lt(x, least)), d.not(d.lt(y, least)));
    let explored = d.explore(least, |_, least| {
        assert!(holds(&d.check(goal(&d, least))));
        let Validity::Fails(model) = d.check(d.eq(least, x)) else { return };
        assert!(model.value("y") < model.value("x"));
    });
    assert_eq!(explored.map(|explored| explored.visited), Ok(2));
}

#[test]
fn what_the_adversary_writes_is_the_same_in_each_run_of_a_path() {
    let d = Symbolic::default();
    let mut reads = Vec::new();
    let explored = d.explore(
        |d| {
            let (first, second) = (d.adversary(0x60, 8), d.adversary(0x60, 8));
            (first, second, d.decide(d.eq(first, second)))
        },
        |_, read| reads.push(read),
    );
    assert_eq!(explored.map(|explored| explored.visited), Ok(2));
    assert_eq!((reads[0].0, reads[0].1), (reads[1].0, reads[1].1));
    assert_eq!(d.display(reads[0].1), "pvcs[0x60]#1");
}

#[test]
fn an_exploration_that_says_nothing_is_an_error() {
    let d = Symbolic::default();
    let x = d.variable("x", 64);
    // Contradictory, but not to the eye.
    d.assume(d.lt(x, d.word(5)));
    d.assume(d.lt(d.word(9), x));
    let visit = |_: &Path, ()| panic!("visited");
    assert_eq!(d.explore(|_| (), visit), Err(ExploreError::Contradiction));
    assert!(!holds(&d.check(d.bit(false))));
    d.reset();
    let endless = |d: &Symbolic| (0..20).filter(|&i| d.decide(d.test(x, i))).count();
    assert_eq!(d.explore(endless, |_, _| ()), Err(ExploreError::TooMany(MAX_PATHS)));
    let mut flip = 0;
    let diverging = |d: &Symbolic| {
        flip += 1;
        d.decide(d.test(x, flip));
    };
    assert_eq!(d.explore(diverging, |_, ()| ()), Err(ExploreError::Diverged));
}

#[test]
fn assumptions_made_in_a_run_end_with_it() {
    let d = Symbolic::default();
    let x = d.variable("x", 64);
    let explored = d.explore(
        |d| {
            if d.decide(d.test(x, 0)) {
                d.assume(d.test(x, 1));
            } else if d.decide(d.lt(x, d.word(9))) {
                // Impossible, as the path says.
                d.assume(d.test(x, 0));
            } else {
                // Impossible, as the solver finds out.
                d.assume(d.lt(x, d.word(5)));
            }
        },
        // Not what was possible before the assumption.
        |_, ()| assert!(holds(&d.check(d.is(d.mask(x, 3), 3)))),
    );
    assert_eq!(explored, Ok(Explored { visited: 1, pruned: 2 }));
    assert!(!holds(&d.check(d.test(x, 1))));
}

/// What makes it safe to answer a question once for all: it says all that its answer depends on.
#[test]
fn equal_questions_are_true_for_as_many_numbers_whoever_asks() {
    use std::collections::HashMap;

    let mut asked: HashMap<question::Question, usize> = HashMap::new();
    let (mut met_again, mut other_names) = (0, 0);
    for seed in 1..400_u64 {
        // The same terms twice: with other names, and after terms that nobody asks for.
        let first = Symbolic::default();
        let second = Symbolic::default();
        let z = second.variable("z", 64);
        let _ = second.lt(second.add(z, second.word(seed)), second.shl(z, 3));
        let questions = [(first, ["a", "b"]), (second, ["x", "y"])].map(|(d, names)| {
            let [a, b] = names.map(|name| d.variable(name, 3));
            let places = [a, d.sub(a, b), d.sar(d.shl(b, 61), 61), d.add(a, b), b];
            let (_, bits) = random_terms(&d, places, seed.wrapping_mul(0xFACE_5EED), 25);
            let of = |&bit: &Bit| {
                let (question, _) = question::Question::new(&d.pool.borrow(), &[bit]);
                let model = |i: u64| names.into_iter().zip([i & 7, i >> 3]).collect();
                let times = (0..64).filter(|&i| d.evaluate_bit(&model(i), bit)).count();
                (question, times)
            };
            bits.iter().map(of).collect::<Vec<_>>()
        });
        other_names += questions[0].iter().zip(&questions[1]).filter(|two| two.0 == two.1).count();
        for (question, times) in questions.into_iter().flatten() {
            met_again += usize::from(asked.contains_key(&question));
            let before = *asked.entry(question).or_insert(times);
            assert_eq!(before, times, "seed {seed}");
        }
    }
    assert!(
        other_names > 3000 && met_again > 5000 && asked.len() > 700,
        "{other_names} {met_again} {}",
        asked.len()
    );
}

#[test]
fn a_question_is_answered_once_and_its_model_is_the_askers() {
    let ask = |names: [&str; 3]| {
        let d = Symbolic::default();
        let [unused, x, y] = names.map(|name| d.variable(name, 64));
        // Only here, so that no other test has asked; and no guess finds it: carries.
        let sum = d.add(d.add(x, y), d.shl(x, 5));
        let goal = d.not(
            d.both(d.is(sum, 0x0FED_CBA9_8765_4321), d.is(d.sub(d.shl(y, 1), x), 0x0A0A_0A0B)),
        );
        let Validity::Fails(model) = d.check(goal) else { panic!() };
        assert!(!d.evaluate_bit(&model, goal), "{model}");
        assert_eq!(d.statistics().solver, 1);
        let (question, variables) = question::Question::new(&d.pool.borrow(), &[goal.negate()]);
        let of = |word: Word| d.pool.borrow().support(word)[0];
        assert!(variables.contains(&of(x)) && variables.contains(&of(y)));
        assert!(!variables.contains(&of(unused)));
        (question, model.value(names[1]), model.value(names[2]))
    };
    let (question, x, y) = ask(["u", "x", "y"]);
    assert!(matches!(answered::known(&question), Some(lowering::Verdict::Satisfiable(_))));
    // Numbers that are no model are not believed.
    let wrong = lowering::Verdict::Satisfiable([x ^ 1, y].into());
    let d = Symbolic::default();
    let [p, q] = ["p", "q"].map(|name| d.variable(name, 64));
    let other = d.both(d.is(d.add(d.add(p, q), d.shl(p, 7)), 0x77), d.is(d.sub(q, p), 0x3_0001));
    let (other_question, _) = question::Question::new(&d.pool.borrow(), &[other]);
    answered::keep(other_question, &wrong);
    let answer = d.solver.borrow_mut().ask(&d.pool.borrow(), &[other]);
    assert!(matches!(answer, solve::Answer::Unknown(why) if why.contains("no model")));
    // The same again by other names.
    assert_eq!(ask(["f", "g", "h"]), (question, x, y));
}
