import { readdirSync, readFileSync } from 'node:fs';
import { join, relative } from 'node:path';
import ts from 'typescript';

/*
 * A statement on a table that holds rows of tenants and does not name the tenant reaches everybody's. The few that must
 * are named here, with their reason; a new one fails the test.
 */

const SOURCES = join(__dirname, '..', '..', '..', 'src');

/** Names of tables with rows of tenants, as they stand in texts of statements, and in their substitutions. */
const TABLES =
  /\b(event|event_lane_\w+|stream_state|stream_snapshot|command)\b|\$\{(SESSIONS|HISTORY|SEARCH|USAGE|GENERATIONS|table|live|fresh|shadow|this\.table)\}/;
const STATEMENT =
  /\b(select|insert\s+into|update|delete\s+from|truncate)\b[^]*\b(from|into|update|join|truncate)\s+(?:only\s+)?(?=\S)/i;

/** File and a part of the statement → why it does not name a tenant. */
const LANES =
  'a lane has the events of all tenants in one order; its readers (read models, relay) are of the service';
const WHOLE: readonly (readonly [file: string, part: string, why: string])[] = [
  ['event-store/feed-reader.ts', 'with ordinality as w', 'places that were found by tenant before'],
  ['event-store/lane-reader.ts', 'isFull', LANES],
  ['event-store/lane-reader.ts', 'e.data::text as data', LANES],
  ['event-store/lane-reader.ts', 'as nth', LANES],
  ['event-store/lane-reader.ts', 'min(e.time)', LANES],
  ['event-store/lane-reader.ts', 'said.position', 'ids of events that the topic has'],
  ['event-store/leaf-reader.ts', 'isSealed', 'a tree over a lane is over the events of all tenants'],
  ['event-store/log-ranges.ts', 'relpartbound', 'positions alone'],
  ['event-store/log-ranges.ts', '+ $2 + 1 as end', 'positions alone'],
  ['event-store/log-ranges.ts', 'execute function refuse_change()', 'a trigger for all rows'],
  ['event-store/migrations/0002-lane_ends.sql', 'lane_ends', 'positions alone'],
  [
    'event-store/stream-reader.ts',
    "s.stream_id >= '~'",
    'the settings of all tenants, for the node that keeps to them',
  ],
  ['event-store/stretches.ts', 'position - 1', LANES],
  ['event-store/stretches.ts', 'sum(octet_length(sealed))', LANES],
  ['projection-engine/verify.ts', 'hashtextextended', 'a digest of a whole read model'],
  ['read-models/search.projection.ts', '[r.before + 1 : r.until]', 'new rows, with their tenants'],
  ['read-models/session-candidates.ts', 'generation_id is not null', 'the sweeper looks after all tenants'],
  ['read-models/usage.projection.ts', 'KEY', 'the key begins with the tenant'],
];

interface Text {
  readonly file: string;
  readonly line: number;
  readonly text: string;
}

function* filesIn(folder: string): Generator<string> {
  for (const entry of readdirSync(folder, { withFileTypes: true })) {
    const path = join(folder, entry.name);
    if (entry.isDirectory()) yield* filesIn(path);
    else if (/\.(ts|sql)$/.test(entry.name)) yield path;
  }
}

/** The statements of a source, each with its substitutions as they are written. */
function statementsOf(path: string): Text[] {
  const file = relative(SOURCES, path);
  const source = readFileSync(path, 'utf8');
  if (path.endsWith('.sql')) {
    return [{ file, line: 0, text: source.replaceAll(/--.*$/gm, '') }];
  }
  const parsed = ts.createSourceFile(path, source, ts.ScriptTarget.ES2022, true);
  const found: Text[] = [];
  const visit = (node: ts.Node): void => {
    const isText =
      ts.isTemplateExpression(node) || ts.isNoSubstitutionTemplateLiteral(node) || ts.isStringLiteral(node);
    if (isText) {
      const line = parsed.getLineAndCharacterOfPosition(node.getStart()).line + 1;
      found.push({ file, line, text: node.getText().replaceAll(/--.*$/gm, '') });
    } else ts.forEachChild(node, visit);
  };
  visit(parsed);
  return found;
}

const statements = [...filesIn(SOURCES)]
  .flatMap(statementsOf)
  .filter(({ text }) => STATEMENT.test(text) && TABLES.test(text));

describe('the statements of the sources', () => {
  it('are found', () => {
    expect(statements.length).toBeGreaterThan(30);
  });

  it('name the tenant where they are on rows of tenants, unless they are about all tenants by design', () => {
    const open = statements.filter(({ text }) => !/\btenants?\b/.test(text));
    const unknown = open.filter(
      ({ file, text }) => !WHOLE.some(([where, part]) => where === file && text.includes(part)),
    );
    expect(
      unknown.map(({ file, line, text }) => `${file}:${line} ${text.replaceAll(/\s+/g, ' ').slice(0, 160)}`),
    ).toEqual([]);
  });

  it('are all still there', () => {
    const gone = WHOLE.filter(
      ([where, part]) => !statements.some(({ file, text }) => file === where && text.includes(part)),
    );
    expect(gone).toEqual([]);
  });
});
