//! The core without Python: DeepSeek's figure, and properties that no order and no times may break.

use proptest::prelude::*;

use super::*;

/// DeepSeek's profile: a layer's times as (combine I, attention F, mlp I, dispatch F, dispatch I, mlp W, mlp F,
/// attention I, attention W, combine F). A row is a fused layer, so the backward's layers stand in it last first.
const PUBLISHED: [[u32; 10]; 4] = [
    [4424, 4833, 5746, 6087, 7338, 5333, 4289, 9215, 2381, 7327],
    [5227, 4393, 5467, 5746, 7912, 5059, 4420, 9563, 2390, 8262],
    [6210, 4567, 5467, 7129, 7517, 5260, 5212, 9646, 2400, 9541],
    [7275, 4602, 4772, 7988, 7466, 4639, 4644, 9737, 2412, 9653],
];

fn published() -> Components {
    use Part::*;
    let columns =
        [CombineI, AttentionF, MlpI, DispatchF, DispatchI, MlpW, MlpF, AttentionI, AttentionW, CombineF];
    let mut times = Part::ALL.map(|_| Numbers::One(0.0));
    for (column, part) in columns.into_iter().enumerate() {
        let mut of_layers: Vec<f64> = PUBLISHED.iter().map(|row| row[column].into()).collect();
        if part.kind() != Kind::F {
            of_layers.reverse();
        }
        times[part as usize] = Numbers::Each(of_layers);
    }
    Components::new(&times, None, Orders::default(), 1.0).unwrap()
}

#[test]
fn parts_are_their_own_index() {
    assert!(Part::ALL.into_iter().enumerate().all(|(index, part)| part as usize == index));
}

#[test]
fn deepseeks_profile() {
    let stage = published();
    let pair = pair(&stage, &stage);
    assert_eq!(pair.duration(), 128119.0);
    assert_eq!(pair.parts().len(), 40);
    assert_eq!(Alone::ALL.map(|what| alone(&stage, what).duration()), [98693.0, 112982.0, 29874.0, 115394.0]);
}

fn uniform(times: [f64; Part::COUNT], layers: usize, slowdown: f64) -> Components {
    Components::new(&times.map(Numbers::One), Some(layers), Orders::default(), slowdown).unwrap()
}

/// All parts 1: attention F and combine I at 0, mlp I and dispatch F at 1, mlp W and dispatch I at 2, mlp F at 3,
/// attention I and combine F at 4, attention W at 5.
#[test]
fn one_layer_by_hand() {
    let stage = uniform([1.0; 10], 1, 1.0);
    let layout = pair(&stage, &stage);
    assert_eq!((layout.duration(), layout.exposed()), (6.0, 0.0));
}

/// A computation of 3 beside a communication of 2 that halves its speed: 1 done at 2, the rest at 4.
#[test]
fn slowed_by_hand() {
    let mut times = [0.0; 10];
    times[Part::AttentionF as usize] = 3.0;
    times[Part::CombineI as usize] = 2.0;
    let stage = uniform(times, 1, 2.0);
    assert_eq!(pair(&stage, &stage).duration(), 4.0);
    assert_eq!(alone(&stage, Alone::Forward).duration(), 3.0);
}

#[test]
fn orders_of_any_words() {
    let words = |text: &str| text.split(", ").map(String::from).collect::<Vec<_>>();
    let refused = |text: &str| Orders::new(Some(&words(text)), None).unwrap_err().to_string();
    assert!(refused("combine I, dispatch F, dispatch I").contains("lacks \"combine F\""));
    assert!(refused("combine I, combine I").contains("holds combine I twice"));
    assert!(refused("combine W").contains("no part of a layer"));
    assert!(refused("mlp I").contains("runs on the computation stream"));
    let circle = refused("combine F, dispatch F, dispatch I, combine I");
    assert!(circle.contains("wait for each other in a circle"), "{circle}");
}

/// Any order that gets through is one order of all parts, each after what it needs, dealt out to the streams.
fn order() -> impl Strategy<Value = Orders> {
    Just(Part::ALL.to_vec()).prop_shuffle().prop_map(|mut shuffled| {
        let mut order: Vec<Part> = Vec::new();
        while !shuffled.is_empty() {
            let ready = |part: &Part| match part.needs() {
                (needed, part::Layer::Same) => order.contains(&needed),
                (_, part::Layer::Before) => true,
            };
            let next = shuffled.iter().position(ready).unwrap();
            order.push(shuffled.remove(next));
        }
        let words = |stream| {
            let parts = order.iter().filter(move |part| part.stream() == stream);
            parts.map(|part| part.to_string()).collect::<Vec<_>>()
        };
        Orders::new(Some(&words(Stream::Communication)), Some(&words(Stream::Computation))).unwrap()
    })
}

/// Whole numbers, of which sums of floats are exact.
fn stage() -> impl Strategy<Value = (Vec<[u8; 10]>, Orders)> {
    (proptest::collection::vec(any::<[u8; 10]>(), 1..5), order())
}

fn components((times, orders): &(Vec<[u8; 10]>, Orders), slowdown: f64) -> Components {
    let of = |part| Numbers::Each(times.iter().map(|times| times[part as usize].into()).collect());
    Components::new(&Part::ALL.map(of), None, orders.clone(), slowdown).unwrap()
}

proptest! {
    #[test]
    fn every_part_runs_once_after_what_it_needs(up in stage(), down in stage(), slowdown in 0..4) {
        let slowdown = f64::from(1 << slowdown);
        let (up, down) = (components(&up, slowdown), components(&down, slowdown));
        let layout = pair(&up, &down);
        let parts = layout.parts();
        prop_assert_eq!(parts.len(), 4 * up.layers() + 6 * down.layers());
        prop_assert!(parts.is_sorted_by_key(|laid| laid.start));
        for stream in [Stream::Computation, Stream::Communication] {
            let own: Vec<_> = parts.iter().filter(|laid| laid.part.stream() == stream).collect();
            prop_assert!(own.windows(2).all(|two| two[0].end <= two[1].start));
        }
        for laid in parts {
            let (needed, layer) = laid.part.needs();
            let step = match (layer, laid.part.kind()) {
                (part::Layer::Same, _) => Some(laid.layer),
                (part::Layer::Before, Kind::F) => laid.layer.checked_sub(1),
                (part::Layer::Before, _) => Some(laid.layer + 1),
            };
            let found = parts.iter().find(|other| other.part == needed && Some(other.layer) == step);
            prop_assert!(found.is_none_or(|found| found.end <= laid.start));
        }
    }

    /// Never longer than all parts one after the other, and never shorter for being slowed down.
    #[test]
    fn bounds(up in stage(), down in stage()) {
        let duration = |slowdown| pair(&components(&up, slowdown), &components(&down, slowdown)).duration();
        let (plain, slowed, crawling) = (duration(1.0), duration(1.5), duration(1000.0));
        let sum = |stage: &(Vec<[u8; 10]>, Orders), forward: bool| -> f64 {
            let parts = Part::ALL.into_iter().filter(|part| (part.kind() == Kind::F) == forward);
            parts.flat_map(|part| stage.0.iter().map(move |times| f64::from(times[part as usize]))).sum()
        };
        let all = sum(&up, true) + sum(&down, false);
        prop_assert!(plain <= slowed + 1e-6 && slowed <= crawling + 1e-6 && crawling <= all + 1e-6);
    }
}
