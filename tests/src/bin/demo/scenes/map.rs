//! What a host knows: the page map as a picture.

use crate::{
    figures,
    hosts::World,
    page_map,
    picture::{Kind, Picture},
    stage::{Failure, Stage},
};

const ROWS: u64 = 14;

pub(super) fn play(world: &World, stage: &mut Stage) -> Result<(), Failure> {
    stage.scene("What a host knows")?;
    let [north, south] = &world.hosts;
    let guest = &north.guests[0];
    let theirs = super::contents(south)?;
    let map = page_map::fetch(north.daemon(), &north.vm(guest)?.id, None)?;
    let picture = Picture::new(map.pages.iter().map(|page| Kind::of(page, &theirs)).collect(), ROWS);
    stage.say(&format!(
        "The memory of {} on {}, {} pages, held against what {} knows of its own VMs. Fingerprints are compared, no memory \
         is read.",
        guest.name,
        north.name,
        figures::count(map.total),
        south.name
    ));
    let legend = picture.legend(stage, south.name);
    let rows = picture.draw(stage);
    stage.line("");
    for row in rows {
        stage.line(&row);
    }
    stage.line("");
    stage.line(&legend);
    Ok(())
}
