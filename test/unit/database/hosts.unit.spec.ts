import { hostsOf } from '../../../src/database/hosts.js';

it.each([
  ['postgres://u:p@db:5433/chat', 'postgres://u:p@db:5433/chat', [['db', 5433]]],
  ['postgresql://db/chat?sslmode=require', 'postgresql://db/chat?sslmode=require', [['db', 5432]]],
  [
    'postgres://u:p@a:1,b,[::1]:3/chat?target_session_attrs=read-write',
    'postgres://u:p@a:1/chat?target_session_attrs=read-write',
    [
      ['a', 1],
      ['b', 5432],
      ['::1', 3],
    ],
  ],
  // As for `URL`, the last @ ends the password: no part of it may be taken for a host, and shown.
  ['postgres://u:p@ss@db/chat', 'postgres://u:p@ss@db/chat', [['db', 5432]]],
  ['postgres:///chat', 'postgres:///chat', [['localhost', 5432]]],
])('given the URL %s, when its hosts are asked for, then each has its port', (given, first, hosts) => {
  expect(hostsOf(given)).toEqual({ url: first, hosts: hosts.map(([host, port]) => ({ host, port })) });
});
