pub async fn all(_wanted: &impl Fn(&str) -> bool) -> usize {
    0
}
