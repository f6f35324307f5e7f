//! The driver API: exported functions under their real names and signatures. What they do stands elsewhere;
//! here arguments are checked and errors chosen.

mod device;
mod event;
mod memory;
mod stream;
