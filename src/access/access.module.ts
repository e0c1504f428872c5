import { Inject, Logger, Module, type OnApplicationShutdown, type OnModuleInit } from '@nestjs/common';
import { HttpAdapterHost } from '@nestjs/core';
import { type Config, SETTINGS } from '../config.js';
import { RedisLink } from '../database/redis-link.js';
import { RelaxedPool } from '../database/relaxed-pool.js';
import { EventLog } from '../event-store/log.js';
import { serverOf } from '../http/backend-adapter.js';
import { databaseKeys, tokensOf } from './authenticators.js';
import { KeyStore } from './key-store.js';
import { KeysController } from './keys.controller.js';
import { KnownKeys } from './known-keys.js';
import { Limits } from './limits.js';
import { Tokens } from './tokens.js';

/** Who may do what, and how much: keys in the database, tokens, limits. Keys of the settings are known before. */
@Module({
  providers: [
    {
      provide: KeyStore,
      useFactory: ({ pool }: RelaxedPool) => new KeyStore(pool),
      inject: [RelaxedPool],
    },
    {
      provide: Limits,
      useFactory: ({ server, tenants }: Config, redis: RedisLink | null) =>
        new Limits(
          {
            ...server.limits,
            ofTenants: new Map(
              Object.entries(tenants).flatMap(([tenant, { limits }]) => (limits ? [[tenant, limits]] : [])),
            ),
          },
          redis,
        ),
      inject: [SETTINGS, RedisLink],
    },
  ],
  controllers: [KeysController],
  exports: [Limits],
})
export class AccessModule implements OnModuleInit, OnApplicationShutdown {
  private readonly logger = new Logger('access');

  constructor(
    private readonly host: HttpAdapterHost,
    private readonly keys: KeyStore,
    private readonly limits: Limits,
    private readonly log: EventLog,
    @Inject(SETTINGS) private readonly settings: Config,
  ) {}

  onModuleInit(): void {
    // An application without a server admits nobody.
    serverOf(this.host)?.guard.extend(this.authenticators(), this.limits);
  }

  onApplicationShutdown(): void {
    this.limits.close();
  }

  private authenticators() {
    const { mode, jwt } = this.settings.auth;
    if (mode === 'none') return [];
    const known = new KnownKeys(this.keys, this.log.telemetry.failed('reading an API key again'));
    const unreachable = (error: unknown): void => {
      this.logger.warn(`The keys of the issuer of tokens cannot be fetched: ${(error as Error).message}`);
    };
    return [databaseKeys(known), ...(jwt ? [tokensOf(new Tokens(jwt, unreachable))] : [])];
  }
}
