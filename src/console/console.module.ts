import { Module, type OnModuleInit } from '@nestjs/common';
import { HttpAdapterHost } from '@nestjs/core';
import { serverOf } from '../http/backend-adapter.js';
import { servePage } from './page.js';

/** The page at `/console`, which is a client of the API like any other. */
@Module({})
export class ConsoleModule implements OnModuleInit {
  constructor(private readonly host: HttpAdapterHost) {}

  onModuleInit(): void {
    const fastify = serverOf(this.host);
    if (fastify) servePage(fastify);
  }
}
