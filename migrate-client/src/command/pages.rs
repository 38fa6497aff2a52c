//! `memdex pages`: the page map, streamed; a summary and a small picture of it for people.
//!
//! However large the VM is, only counters are held.

use std::io::{self, IsTerminal};

use memdex_wire::{
    page::{PageRecord, PageState},
    vm::VmInfo,
};
use migrate_client::{PageStream, printable};

use super::{Context, Failure};
use crate::{
    output::{Format, Output, bytes, count, lines, percent, table},
    progress::Progress,
};

/// Prints what is known of each page of the VM. As a table: a summary for each region and a picture of the map; the
/// pages themselves come with -o jsonl (one object a line) or -o json (one array), in page order.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  memdex pages vm1                               summary and picture
  memdex pages vm1 -o jsonl | head -3            the first three pages
  memdex pages vm1 --since 4711 -o jsonl         what changed since generation 4711, and what is stale now
  memdex pages vm1 -o jsonl | jq -r 'select(.fingerprint).fingerprint' | sort | uniq -c | sort -rn | head")]
pub(super) struct Arguments {
    /// Id, name or pid of the VM.
    vm: String,
    /// Only pages whose content changed after this generation, and those that are stale now.
    #[arg(long, value_name = "GEN")]
    since: Option<u64>,
}

pub(super) async fn run(mut context: Context, arguments: Arguments) -> Result<(), Failure> {
    let mut progress = context.progress("pages", &arguments.vm);
    let mut pages = progress.during(context.client.pages(&arguments.vm, arguments.since)).await?;
    if context.output.format() != Format::Table && io::stdout().is_terminal() {
        progress.make_way();
    }
    let output = &mut context.output;
    match output.format() {
        Format::Jsonl => {
            each(&mut pages, &mut progress, |page| {
                output.compact(&page)?;
                output.text("\n")
            })
            .await?;
        }
        Format::Json => {
            let mut before = "[\n";
            each(&mut pages, &mut progress, |page| {
                output.text(std::mem::replace(&mut before, ",\n"))?;
                output.compact(&page)
            })
            .await?;
            output.text(if before == "[\n" { "[]\n" } else { "\n]\n" })?;
        }
        Format::Table => {
            let mut summary = Summary::new(pages.vm(), pages.pages());
            each(&mut pages, &mut progress, |page| {
                summary.add(&page);
                Ok(())
            })
            .await?;
            output_summary(output, &pages, &summary, arguments.since)?;
        }
    }
    progress.finish();
    Ok(output.flush()?)
}

async fn each(
    pages: &mut PageStream,
    progress: &mut Progress,
    mut take: impl FnMut(PageRecord) -> io::Result<()>,
) -> Result<(), Failure> {
    let total = pages.records();
    let mut done = 0u64;
    while let Some(page) = pages.next().await {
        take(page?)?;
        done += 1;
        if done.is_multiple_of(4096) || done == total {
            progress.set(done, total);
        }
    }
    Ok(())
}

fn output_summary(
    output: &mut Output,
    pages: &PageStream,
    summary: &Summary,
    since: Option<u64>,
) -> io::Result<()> {
    let vm = pages.vm();
    output.line(&match since {
        None => format!(
            "{}: {} pages, {}, generation {}",
            printable(&vm.name),
            count(pages.pages()),
            bytes(vm.memory_bytes),
            pages.generation()
        ),
        Some(since) => format!(
            "{}: {} of {} pages changed after generation {since} or are stale now, generation {}",
            printable(&vm.name),
            count(pages.records()),
            count(pages.pages()),
            pages.generation()
        ),
    })?;
    output.line("")?;
    output.text(&summary.table(vm))?;
    if since.is_none() {
        output.text(&summary.picture(vm))?;
    }
    Ok(())
}

/// Signs in a row of the picture, and rows of all regions together.
const WIDTH: u64 = 64;
const ROWS: u64 = 16;
/// In the order of [`PageState`]'s numbers.
const SIGNS: [char; 4] = ['×', '·', '░', '█'];

/// Counters of one stretch of pages, by state.
type Counts = [u64; 4];

/// What is kept of a map.
struct Summary {
    regions: Vec<RegionSummary>,
    /// Pages a sign of the picture stands for.
    scale: u64,
}

struct RegionSummary {
    first_page: u64,
    all: Counts,
    cells: Vec<Counts>,
}

impl Summary {
    /// `pages` is checked to be the sum of all regions, so there are not many more cells than the picture has signs.
    fn new(vm: &VmInfo, pages: u64) -> Self {
        let scale = pages.div_ceil(WIDTH * ROWS).max(1);
        let regions = vm.coverage.iter().map(|region| RegionSummary {
            first_page: region.first_page,
            all: Counts::default(),
            cells: vec![Counts::default(); region.pages.div_ceil(scale) as usize],
        });
        Self { regions: regions.collect(), scale }
    }

    fn add(&mut self, page: &PageRecord) {
        let state = page.state as usize;
        let Some(region) = self.regions.get_mut(page.region as usize) else { return };
        region.all[state] += 1;
        let cell = page.page.saturating_sub(region.first_page) / self.scale;
        if let Some(cell) = usize::try_from(cell).ok().and_then(|cell| region.cells.get_mut(cell)) {
            cell[state] += 1;
        }
    }

    fn table(&self, vm: &VmInfo) -> String {
        let columns =
            ["REGION", ">FIRST PAGE", ">PAGES", "COVERAGE", ">CURRENT", ">ZERO", ">ABSENT", ">STALE"];
        let mut table = table(&columns);
        for (region, summary) in vm.coverage.iter().zip(&self.regions) {
            let share = |state: PageState| {
                let pages = summary.all[state as usize];
                format!("{} ({})", count(pages), percent(pages, region.pages))
            };
            let status = format!("{:?}", region.status).to_lowercase();
            let reason = region.reason.as_deref().map_or(String::new(), |why| format!(": {why}"));
            table.add_row([
                printable(&region.region),
                count(region.first_page),
                count(region.pages),
                printable(&(status + &reason)),
                share(PageState::Current),
                share(PageState::Zero),
                share(PageState::Absent),
                share(PageState::Stale),
            ]);
        }
        lines(&table)
    }

    fn picture(&self, vm: &VmInfo) -> String {
        let mut text = String::new();
        for (region, summary) in vm.coverage.iter().zip(&self.regions) {
            text.push_str(&format!("\n{}\n", printable(&region.region)));
            for row in summary.cells.chunks(WIDTH as usize) {
                text.push_str("  ");
                text.extend(row.iter().map(sign));
                text.push('\n');
            }
        }
        let [stale, absent, zero, current] = SIGNS;
        text + &format!(
            "\n{current} current  {zero} zero  {absent} absent  {stale} stale   a sign: {} pages ({}), what most of them are; \
             {stale} if an eighth is stale\n",
            count(self.scale),
            bytes(self.scale * memdex_wire::PAGE_SIZE as u64)
        )
    }
}

/// What most pages of a cell are.
fn sign(cell: &Counts) -> char {
    let total: u64 = cell.iter().sum();
    let stale = cell[PageState::Stale as usize];
    if stale > 0 && stale * 8 >= total {
        return SIGNS[PageState::Stale as usize];
    }
    let most = (0..cell.len()).max_by_key(|&state| cell[state]);
    most.filter(|_| total > 0).map_or(' ', |state| SIGNS[state])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sign_shows_the_most_and_never_hides_much_that_is_stale() {
        assert_eq!(sign(&[0, 5, 3, 2]), '·');
        assert_eq!(sign(&[0, 0, 3, 4]), '█');
        assert_eq!(sign(&[1, 0, 0, 7]), '×');
        assert_eq!(sign(&[1, 0, 0, 8]), '█');
        assert_eq!(sign(&[0, 0, 0, 0]), ' ');
    }
}
