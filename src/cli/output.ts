import { SingleBar } from 'cli-progress';

/** A column on a terminal; in a pipe whole rows are written instead. */
export interface Column<Row> {
  readonly title: string;
  readonly of: (row: Row) => unknown;
}

// Errors of the stream reach the code that wrote. Without a listener they would also end the process as a crash.
process.stdout.on('error', () => undefined);

/** Resolves when the text was taken, so that a slow reader slows the command down instead of filling its memory. */
export function write(text: string): Promise<void> {
  return new Promise((resolve, reject) => {
    process.stdout.write(text, (error) => {
      if (error) reject(error);
      else resolve();
    });
  });
}

/** Whether the reader of the output has closed it, as `head` does, which is not an error. */
export const isReaderGone = (error: unknown): boolean =>
  (error as NodeJS.ErrnoException | null)?.code === 'EPIPE';

/** A table on a terminal, JSON lines in a pipe. */
export async function print<Row>(
  rows: readonly Row[],
  columns: readonly Column<Row>[],
  withTitles = true,
): Promise<void> {
  if (!process.stdout.isTTY) {
    await write(rows.map((row) => `${JSON.stringify(row)}\n`).join(''));
    return;
  }
  const cells = rows.map((row) => columns.map(({ of }) => shown(of(row))));
  const titles = columns.map(({ title }) => title);
  const widths = titles.map((title, index) =>
    Math.max(withTitles ? title.length : 0, ...cells.map((line) => line[index]?.length ?? 0)),
  );
  const lines = [...(withTitles ? [titles] : []), ...cells].map((line) =>
    line
      .map((cell, index) => cell.padEnd(widths[index] ?? 0))
      .join('  ')
      .trimEnd()
      // Terminals of unknown width report 0.
      .slice(0, process.stdout.columns || undefined),
  );
  await write(`${lines.join('\n')}\n`);
}

/** A value on one line, without control characters: text of users must not control the terminal. */
function shown(value: unknown): string {
  if (value === null || value === undefined) return '';
  const text = typeof value === 'string' ? value : JSON.stringify(value);
  return text.replace(/\p{Cc}+/gu, ' ');
}

/** A progress bar on standard error if that is a terminal. */
export function progressBar(unit: string): {
  update: (done: number, total: number) => void;
  stop: () => void;
} {
  if (!process.stderr.isTTY) return { update: () => undefined, stop: () => undefined };
  const bar = new SingleBar({
    format: `{bar} {percentage}% | {value} of {total} ${unit} | {eta_formatted} left`,
    stream: process.stderr,
    hideCursor: true,
  });
  let isStarted = false;
  return {
    update: (done, total) => {
      if (!isStarted) bar.start(total, done);
      isStarted = true;
      bar.setTotal(total);
      bar.update(done);
    },
    stop: () => {
      if (isStarted) bar.stop();
    },
  };
}
