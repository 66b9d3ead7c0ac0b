#![forbid(unsafe_code)]
pub mod context; pub mod enqueue; pub mod error; pub mod handler; pub mod inspect; pub mod job; pub mod lease; pub mod limit; pub mod outcome; pub mod registry; pub mod retry; pub mod scope; pub mod shutdown; pub mod source; mod sync;
pub use context::*; pub use enqueue::*; pub use error::*; pub use handler::*; pub use inspect::*; pub use job::*; pub use lease::*; pub use limit::*; pub use outcome::*; pub use registry::*; pub use retry::*; pub use scope::*; pub use shutdown::*; pub use source::*;
