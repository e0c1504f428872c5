import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { join } from 'node:path';
import { prepare, root } from './prepare.mjs';

// Writes schemas/ and docs/events.md from the event schemas in the code. A published schema is replaced only by one
// that does not break its consumers. A change that would break them needs a new version (docs/events.md says how).

prepare();
const require = createRequire(import.meta.url);
const { breakingChanges } = require('../dist/kafka/compatibility.js');
const { eventsPage, jsonSchemas } = require('../dist/kafka/documents.js');

const problems = [];
const files = new Map([[join(root, 'docs', 'events.md'), eventsPage()]]);
for (const [name, schema] of Object.entries(jsonSchemas())) {
  const file = join(root, 'schemas', name);
  if (existsSync(file)) {
    const found = breakingChanges(JSON.parse(readFileSync(file, 'utf8')), schema);
    problems.push(...found.map((problem) => `schemas/${name}: ${problem}`));
  }
  files.set(file, `${JSON.stringify(schema, null, 2)}\n`);
}
if (problems.length > 0) {
  console.error('These changes break consumers of what is published already; count the version up instead:');
  for (const problem of problems) console.error(`  ${problem}`);
  process.exit(1);
}
for (const [file, text] of files) writeFileSync(file, text);
