//! Pushes that break off, lie or do not fit; and what is collected when.

use faultbed_common::program::PushHead;

use super::*;

fn content_of(data: &[u8]) -> Content {
    Content { sha256: Sha256::of(data), bytes: data.len() as u64 }
}

struct Ground {
    dir: tempfile::TempDir,
    contents: Arc<Contents>,
}

fn ground(bytes_max: u64) -> Ground {
    let dir = tempfile::tempdir().unwrap();
    let contents = Arc::new(Contents::new(dir.path().join("content"), bytes_max));
    Ground { dir, contents }
}

impl Ground {
    /// Pushes `data` from `offset` on as the content of `whole`; how many bytes are there then.
    async fn push(&self, whole: &[u8], data: &[u8], offset: u64) -> Result<u64, ContentError> {
        let content = content_of(whole);
        let head = PushHead { content: content.clone(), offset };
        match self.contents.receive(&head, &BTreeSet::new()).await? {
            None => Ok(content.bytes),
            Some(mut receiving) => {
                for piece in data.chunks(3) {
                    receiving.take(piece).await?;
                }
                receiving.finish().await
            }
        }
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.dir.path().join("content")).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

fn read(contents: &Contents, content: &Content) -> Vec<u8> {
    let mut bytes = Vec::new();
    io::Read::read_to_end(&mut contents.open(&content.sha256).unwrap(), &mut bytes).unwrap();
    bytes
}

#[tokio::test]
async fn a_push_that_broke_off_goes_on_where_it_ended() {
    let ground = ground(1000);
    let whole = b"a whole program";
    let content = content_of(whole);
    assert_eq!(ground.contents.held(&content), Held::default());
    assert_eq!(ground.push(whole, &whole[..7], 0).await.unwrap(), 7);
    assert!(matches!(ground.contents.open(&content.sha256), Err(ContentError::Missing(_))));
    assert_eq!(ground.contents.held(&content), Held { whole: false, bytes: 7 });
    let gap = ground.push(whole, &whole[9..], 9).await.unwrap_err();
    assert!(matches!(gap, ContentError::Gap { offset: 9, held: 7 }), "{gap}");
    assert_eq!(ground.push(whole, &whole[7..], 7).await.unwrap(), 15);
    assert_eq!(ground.contents.held(&content), Held { whole: true, bytes: 15 });
    assert_eq!(read(&ground.contents, &content), whole);
    assert_eq!(ground.names(), [content.sha256.to_string()], "nothing is left beside it");
}

#[tokio::test]
async fn what_is_not_what_was_announced_is_not_kept() {
    let ground = ground(1000);
    let lie = ground.push(b"a whole program", b"a whale program", 0).await.unwrap_err();
    assert!(matches!(lie, ContentError::Mismatch { .. }), "{lie}");
    let long = ground.push(b"short", b"much too long", 0).await.unwrap_err();
    assert!(matches!(long, ContentError::TooMuch { bytes: 5 }), "{long}");
    assert!(ground.names().is_empty());
    ground.push(b"short", b"short", 0).await.unwrap();
}

#[tokio::test]
async fn whoever_pushes_the_same_at_the_same_time_waits_and_finds_it_done() {
    let ground = ground(1000);
    let whole = b"one program".as_slice();
    let head = PushHead { content: content_of(whole), offset: 0 };
    let mut first = ground.contents.receive(&head, &BTreeSet::new()).await.unwrap().unwrap();
    let (contents, same) = (Arc::clone(&ground.contents), head.clone());
    let second = tokio::spawn(async move { contents.receive(&same, &BTreeSet::new()).await });
    // A different content need not wait.
    ground.push(b"another", b"another", 0).await.unwrap();
    first.take(whole).await.unwrap();
    first.finish().await.unwrap();
    assert!(second.await.unwrap().unwrap().is_none());
}

#[tokio::test]
async fn the_bound_takes_what_nobody_names_first_and_then_refuses() {
    let ground = ground(20);
    ground.push(b"0123456789", b"0123456789", 0).await.unwrap();
    ground.push(b"abcdefgh", b"abcdefgh", 0).await.unwrap();
    let named = BTreeSet::from([content_of(b"abcdefgh").sha256]);
    let new = PushHead { content: content_of(b"ABCDEFGHIJ"), offset: 0 };
    assert!(ground.contents.receive(&new, &named).await.unwrap().is_some());
    assert!(!ground.contents.held(&content_of(b"0123456789")).whole, "nobody named it");
    assert!(ground.contents.held(&content_of(b"abcdefgh")).whole);
    let large = PushHead { content: content_of(b"ABCDEFGHIJKLM"), offset: 0 };
    let full = ground.contents.receive(&large, &named).await.unwrap_err();
    assert!(matches!(full, ContentError::Full { needed: 21, bound: 20 }), "{full}");
}

#[tokio::test]
async fn what_no_cluster_names_goes_after_its_grace_and_parts_later() {
    let ground = ground(1000);
    ground.push(b"named", b"named", 0).await.unwrap();
    ground.push(b"forgotten", b"forgotten", 0).await.unwrap();
    ground.push(b"broken off", b"broken", 0).await.unwrap();
    let named = BTreeSet::from([content_of(b"named").sha256]);
    let after = |grace: Duration| SystemTime::now() + grace + Duration::from_secs(60);
    assert_eq!(ground.contents.collect(&named, SystemTime::now()), 0);
    assert_eq!(ground.contents.collect(&named, after(GRACE)), 1);
    assert!(!ground.contents.held(&content_of(b"forgotten")).whole);
    assert_eq!(ground.contents.held(&content_of(b"broken off")).bytes, 6);
    assert_eq!(ground.contents.collect(&named, after(PART_GRACE)), 1);
    assert!(ground.contents.held(&content_of(b"named")).whole);
}
