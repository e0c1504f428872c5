import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { createEmptyDatabase } from '../support/database.js';
import { startService } from '../support/process.js';

const FIXTURES = join(__dirname, '../fixtures/databases');

it.each(['0.1.0'])(
  'given a database that version %s made, when this version starts on it, then every session answers as before and can be written',
  async (release) => {
    const db = await createEmptyDatabase();
    try {
      await db.query(readFileSync(join(FIXTURES, `${release}.sql`), 'utf8'));
      await db.query('set search_path to public');
      const answers = JSON.parse(readFileSync(join(FIXTURES, `${release}.json`), 'utf8')) as Record<
        string,
        object
      >;
      const service = await startService({ env: { DATABASE_URL: db.url } });
      try {
        for (const [path, answer] of Object.entries(answers)) {
          const response = await fetch(service.url + path);
          expect({ path, answer: await response.json() }).toMatchObject({ path, answer });
        }
        const written = await fetch(`${service.url}/v1/sessions/long/messages`, {
          method: 'POST',
          headers: { 'content-type': 'application/json', 'if-match': '"42"' },
          body: JSON.stringify({ role: 'user', content: 'after the upgrade' }),
        });
        expect(written.status).toBe(201);
        const last = await fetch(`${service.url}/v1/sessions/long/messages?order=desc&limit=1`);
        expect(await last.json()).toMatchObject({ data: [{ version: 43, content: 'after the upgrade' }] });
      } finally {
        await service.stop();
      }
    } finally {
      await db.drop();
    }
  },
  60_000,
);
