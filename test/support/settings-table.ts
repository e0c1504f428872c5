import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import ts from 'typescript';
import { settings } from '../../src/config/schema.js';
import { VARIABLES } from '../../src/config/sources.js';

const SCHEMA = join(__dirname, '../../src/config/schema.ts');

interface Setting {
  /** e.g. `sessions.maxSessions` */
  readonly key: string;
  readonly comment: string;
}

/** The table of all settings: what they are called and mean is in the source of the schema, the rest it knows itself. */
export function settingsTable(): string {
  const rows = settingsOf(readFileSync(SCHEMA, 'utf8')).map(({ key, comment }) => {
    const path = key.split('.');
    const variables = VARIABLES.filter((variable) => namedBy(variable).join('.') === key).map(
      ({ name }) => `\`${name}\``,
    );
    return `| \`${key}\` | ${variables.join(', ')} | ${takesOf(path)} | ${comment.replaceAll('|', '\\|')} |`;
  });
  return ['| key | variable | takes | |', '| --- | --- | --- | --- |', ...rows].join('\n');
}

/** Variables that set a whole section name its URL. */
function namedBy({ name, path }: (typeof VARIABLES)[number]): readonly string[] {
  return name === 'DATABASE_URL' || name === 'REDIS_URL' ? [...path, 'url'] : path;
}

/** What a setting takes, by what the schema says to a value that is nothing like it. */
function takesOf(path: readonly string[]): string {
  const real = path
    .map((name) => (name === '<id>' ? 'acme' : name))
    .flatMap((name) => (name.endsWith('[]') ? [name.slice(0, -2), 0] : [name]));
  const given = real.reduceRight<unknown>(
    (inner, name) => (name === 0 ? [inner] : { [name]: inner }),
    Symbol('no value'),
  );
  const issue = settings.safeParse(given).error?.issues.find((one) => one.path.join('.') === real.join('.'));
  const [, takes = ''] =
    /^must be (?!a mapping with the keys)(.+?)(?:;.*)?$/.exec(issue?.message ?? '') ?? [];
  const [, choices] = /^one of: (.+)$/.exec(takes) ?? [];
  if (choices !== undefined)
    return choices
      .split(', ')
      .map((choice) => `\`${choice}\``)
      .join(', ');
  return takes.replace(/^a whole number from (\d+) to (\d+)/, '$1 to $2').replaceAll('|', '\\|');
}

/** The settings of a schema's source, in their order. Sections are told apart by `section({ … })` in their values. */
function settingsOf(source: string): Setting[] {
  const file = ts.createSourceFile('schema.ts', source, ts.ScriptTarget.ES2022, true);
  const constants = new Map<string, ts.Expression>();
  file.forEachChild((node) => {
    if (!ts.isVariableStatement(node)) return;
    for (const { name, initializer } of node.declarationList.declarations)
      if (initializer) constants.set(name.getText(), initializer);
  });

  /**
   * The members of the section that a value is, or has many of; undefined for any other value.
   * @returns with what stands behind the name of the value, in the name of its members
   */
  const membersOf = (
    value: ts.Expression,
  ): { members: ts.ObjectLiteralExpression; of: string } | undefined => {
    if (ts.isObjectLiteralExpression(value)) return { members: value, of: '' };
    if (ts.isIdentifier(value)) {
      const constant = constants.get(value.text);
      return constant && membersOf(constant);
    }
    if (!ts.isCallExpression(value)) return undefined;
    const { expression, arguments: given } = value;
    if (expression.getText() === 'section' && given[0]) return membersOf(given[0]);
    if (!ts.isPropertyAccessExpression(expression)) return undefined;
    const many: Readonly<Record<string, { argument: ts.Expression | undefined; of: string } | undefined>> = {
      record: { argument: given[1], of: '.<id>' },
      array: { argument: given[0], of: '[]' },
    };
    const { argument, of = '' } = many[expression.name.text] ?? {};
    const element = argument && membersOf(argument);
    return element ? { ...element, of } : membersOf(expression.expression);
  };

  const found: Setting[] = [];
  const visit = (members: ts.ObjectLiteralExpression, path: readonly string[]): void => {
    for (const member of members.properties) {
      if (!ts.isPropertyAssignment(member)) continue;
      const names = [...path, member.name.getText()];
      const comment = ts
        .getJSDocCommentsAndTags(member)
        .map((doc) => ts.getTextOfJSDocComment(doc.comment) ?? '')
        .join(' ')
        .replaceAll(/\s+/g, ' ')
        .trim();
      const inner = membersOf(member.initializer);
      if (!inner || comment !== '') found.push({ key: names.join('.'), comment });
      if (inner) visit(inner.members, (names.join('.') + inner.of).split('.'));
    }
  };
  const all = constants.get('settings');
  const root = all && membersOf(all);
  if (!root) throw new Error(`${SCHEMA} has no settings`);
  visit(root.members, []);
  return found;
}
