//! In which order each stream runs the parts of one fused layer: checked, so that no two parts wait for
//! each other.

use super::part::{Layer, Part, Stream};
use crate::error::Error;
use crate::verify::shortest_circle;

/// Each part of a stream once, in an order in which both streams get through.
#[derive(Debug, Clone, PartialEq)]
pub struct Orders {
    communication: Vec<Part>,
    computation: Vec<Part>,
}

impl Default for Orders {
    /// DeepSeek's, as its published profile shows it.
    fn default() -> Self {
        use Part::*;
        Orders {
            communication: vec![CombineI, DispatchF, DispatchI, CombineF],
            computation: vec![AttentionF, MlpI, MlpW, MlpF, AttentionI, AttentionW],
        }
    }
}

impl Orders {
    /// Reads words such as "mlp I"; `None` stands for DeepSeek's order.
    pub fn new(communication: Option<&[String]>, computation: Option<&[String]>) -> Result<Self, Error> {
        let published = Orders::default();
        let orders = Orders {
            communication: match communication {
                Some(words) => read(Stream::Communication, words)?,
                None => published.communication,
            },
            computation: match computation {
                Some(words) => read(Stream::Computation, words)?,
                None => published.computation,
            },
        };
        orders.check_circle()?;
        Ok(orders)
    }

    pub fn of(&self, stream: Stream) -> &[Part] {
        match stream {
            Stream::Communication => &self.communication,
            Stream::Computation => &self.computation,
        }
    }

    /// One layer shows every circle: between layers, each waits for one before it alone. And a lone direction
    /// runs a part of these parts, which wait for no more than here.
    fn check_circle(&self) -> Result<(), Error> {
        let circle = shortest_circle(Part::COUNT, |part| self.waits(Part::ALL[part]));
        if circle.is_empty() {
            return Ok(());
        }
        let steps: Vec<String> = circle
            .iter()
            .zip(circle.iter().cycle().skip(1))
            .map(|(&(part, why), &(on, _))| format!("{} waits for {}, {why}", Part::ALL[part], Part::ALL[on]))
            .collect();
        let problem = format!(
            "and computation_order make parts wait for each other in a circle: {}; move one of them",
            steps.join("; ")
        );
        Err(Error::Cost { name: ORDER_NAMES[Stream::Communication as usize], problem })
    }

    /// Whom a part waits for within its layer, and why.
    fn waits(&self, part: Part) -> Vec<(usize, &'static str)> {
        let order = self.of(part.stream());
        let before = order.iter().take_while(|&&other| other != part).last();
        let stands = (before, "which stands before it on its stream");
        let (needed, layer) = part.needs();
        let takes = ((layer == Layer::Same).then_some(&needed), "whose result it takes");
        [takes, stands].into_iter().filter_map(|(on, why)| on.map(|&on| (on as usize, why))).collect()
    }
}

/// The arguments' names, by stream.
const ORDER_NAMES: [&str; 2] = ["computation_order", "communication_order"];

fn read(stream: Stream, words: &[String]) -> Result<Vec<Part>, Error> {
    let refuse = |what: String| {
        let problem = format!("{what}; it has each of these once, in any order: {}", join(stream.parts()));
        Err(Error::Cost { name: ORDER_NAMES[stream as usize], problem })
    };
    let mut order: Vec<Part> = Vec::new();
    for word in words {
        match Part::from_name(word) {
            None => return refuse(format!("holds {word:?}, which is no part of a layer")),
            Some(part) if part.stream() != stream => {
                let other = part.stream().name();
                return refuse(format!("holds {part}, which runs on the {other} stream"));
            }
            Some(part) if order.contains(&part) => return refuse(format!("holds {part} twice")),
            Some(part) => order.push(part),
        }
    }
    let missing = stream.parts().filter(|part| !order.contains(part));
    match join(missing) {
        missing if missing.is_empty() => Ok(order),
        missing => refuse(format!("lacks {missing}")),
    }
}

fn join(parts: impl Iterator<Item = Part>) -> String {
    parts.map(|part| format!("{:?}", part.name())).collect::<Vec<_>>().join(", ")
}
