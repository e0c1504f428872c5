import { once } from 'node:events';
import { connect } from 'node:net';
import { startApp } from './fixture.js';

it('given a connection that was opened ahead of its first request, when the server closes, then it does not wait for it', async () => {
  const app = await startApp();
  await app.listen(0, '127.0.0.1');
  const socket = connect(Number(new URL(await app.getUrl()).port), '127.0.0.1');
  await once(socket, 'connect');
  const closed = once(socket, 'close');

  const begun = performance.now();
  await Promise.all([app.close(), closed]);

  expect(performance.now() - begun).toBeLessThan(2_000);
});
