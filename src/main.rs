//! legion
fn main(){}
