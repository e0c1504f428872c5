const passes = ({ pass, ratio, atLeast, atMost }) => {
  if (atLeast !== undefined) return ratio >= atLeast;
  if (atMost !== undefined) return ratio <= atMost;
  return pass;
};

const targetOf = ({ atLeast, atMost, target }) => {
  if (target !== undefined) return target;
  if (atLeast !== undefined) return `≥ ${atLeast}`;
  return atMost === undefined ? '' : `≤ ${atMost}`;
};

/** Whether a row meets its target; undefined when it has none. */
export const judge = (row) => passes(row);

/** The rows as a Markdown table. */
export function present(rows) {
  const cells = [
    ['', 'ours', 'beside', 'ratio', 'target', 'result', 'noise'],
    ...rows.map((row) => [
      row.name,
      row.ours,
      row.other ?? '',
      row.ratio?.toFixed(2) ?? '',
      targetOf(row),
      { true: 'pass', false: 'FAIL' }[passes(row)] ?? '',
      row.spread === undefined ? '' : `±${(row.spread * 50).toFixed(0)} %`,
    ]),
  ];
  const widths = cells[0].map((_, column) => Math.max(...cells.map((line) => line[column].length)));
  const lines = cells.map(
    (line) => `| ${line.map((cell, column) => cell.padEnd(widths[column])).join(' | ')} |`,
  );
  lines.splice(1, 0, `| ${widths.map((width) => '-'.repeat(width)).join(' | ')} |`);
  return lines.join('\n');
}
