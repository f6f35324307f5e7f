//! What a layer of a stage is made of, and what each part of it waits for. Names and rules; no times.

use std::fmt;

use crate::schedule::Kind;

/// What a transformer layer with a mixture of experts does to its tokens, in the order of a forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Component {
    Attention,
    /// Tokens to the ranks of their experts.
    Dispatch,
    Mlp,
    /// The experts' outputs back to the ranks of the tokens.
    Combine,
}

impl Component {
    pub fn name(self) -> &'static str {
        match self {
            Component::Attention => "attention",
            Component::Dispatch => "dispatch",
            Component::Mlp => "mlp",
            Component::Combine => "combine",
        }
    }

    pub fn stream(self) -> Stream {
        match self {
            Component::Attention | Component::Mlp => Stream::Computation,
            Component::Dispatch | Component::Combine => Stream::Communication,
        }
    }
}

/// A queue of kernels: what stands in it runs in order, beside the other stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stream {
    Computation,
    Communication,
}

impl Stream {
    pub fn name(self) -> &'static str {
        match self {
            Stream::Computation => "computation",
            Stream::Communication => "communication",
        }
    }

    /// Its parts of one layer, by component.
    pub fn parts(self) -> impl Iterator<Item = Part> {
        Part::ALL.into_iter().filter(move |part| part.stream() == self)
    }
}

/// One component of one direction. A communication has no weights, so no W.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    AttentionF,
    AttentionI,
    AttentionW,
    DispatchF,
    DispatchI,
    MlpF,
    MlpI,
    MlpW,
    CombineF,
    CombineI,
}

use Part::*;

impl Part {
    pub const COUNT: usize = 10;

    pub const ALL: [Part; Part::COUNT] =
        [AttentionF, AttentionI, AttentionW, DispatchF, DispatchI, MlpF, MlpI, MlpW, CombineF, CombineI];

    pub fn component(self) -> Component {
        match self {
            AttentionF | AttentionI | AttentionW => Component::Attention,
            DispatchF | DispatchI => Component::Dispatch,
            MlpF | MlpI | MlpW => Component::Mlp,
            CombineF | CombineI => Component::Combine,
        }
    }

    pub fn kind(self) -> Kind {
        match self {
            AttentionF | DispatchF | MlpF | CombineF => Kind::F,
            AttentionI | DispatchI | MlpI | CombineI => Kind::I,
            AttentionW | MlpW => Kind::W,
        }
    }

    pub fn stream(self) -> Stream {
        self.component().stream()
    }

    /// As users write it.
    pub fn name(self) -> &'static str {
        match self {
            AttentionF => "attention F",
            AttentionI => "attention I",
            AttentionW => "attention W",
            DispatchF => "dispatch F",
            DispatchI => "dispatch I",
            MlpF => "mlp F",
            MlpI => "mlp I",
            MlpW => "mlp W",
            CombineF => "combine F",
            CombineI => "combine I",
        }
    }

    pub fn from_name(name: &str) -> Option<Part> {
        Part::ALL.into_iter().find(|part| part.name() == name)
    }

    /// The part whose result this one takes, and the layer that it belongs to: the only place where these
    /// rules stand. Each takes the result of one other.
    pub fn needs(self) -> (Part, Layer) {
        match self {
            AttentionF => (CombineF, Layer::Before),
            DispatchF => (AttentionF, Layer::Same),
            MlpF => (DispatchF, Layer::Same),
            CombineF => (MlpF, Layer::Same),
            CombineI => (AttentionI, Layer::Before),
            MlpI => (CombineI, Layer::Same),
            DispatchI => (MlpI, Layer::Same),
            AttentionI => (DispatchI, Layer::Same),
            MlpW => (MlpI, Layer::Same),
            AttentionW => (AttentionI, Layer::Same),
        }
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Whose part another needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layer {
    Same,
    /// The one that its direction went through before: forwards walk layers up, backwards down.
    Before,
}
