import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import ts from 'typescript';

const SOURCES = join(__dirname, '../../../src');
const TABLES =
  'event|event_lane_\\d+|stream_state|stream_snapshot|command|counter|data_key|lease|log_settings';
const NAMED = new RegExp(`\\b(?:from|join|into|update|table|only|on|exists)\\s+(?:${TABLES})\\b`, 'i');

/** The texts of a source file that may hold SQL: its literals, or the whole text of an SQL file. */
function textsOf(path: string): string[] {
  const content = readFileSync(path, 'utf8');
  if (path.endsWith('.sql')) return [content.replace(/--.*/g, '')];
  const texts: string[] = [];
  const visit = (node: ts.Node): void => {
    if (ts.isStringLiteralLike(node) || ts.isTemplateHead(node) || ts.isTemplateMiddleOrTemplateTail(node))
      texts.push(node.text);
    ts.forEachChild(node, visit);
  };
  visit(ts.createSourceFile(path, content, ts.ScriptTarget.Latest));
  return texts;
}

/** The files below a folder of the sources whose SQL names a table of the log. */
const namingTables = (isWanted: (path: string) => boolean): string[] =>
  readdirSync(SOURCES, { recursive: true, encoding: 'utf8' })
    .filter((path) => /\.(ts|sql)$/.test(path) && isWanted(path))
    .filter((path) => textsOf(join(SOURCES, path)).some((text) => NAMED.test(text)));

it('given the SQL of all folders, when it names a table of the log, then it is in event-store/', () => {
  const inLog = (path: string): boolean => path.startsWith('event-store/');
  expect(namingTables((path) => !inLog(path))).toEqual([]);
  // The search must find the tables in event-store/; otherwise it would prove nothing.
  expect(namingTables(inLog).length).toBeGreaterThan(10);
});
