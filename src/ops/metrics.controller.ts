import { Controller, Get, Header } from '@nestjs/common';
import { Registry } from 'prom-client';
import { Requires } from '../access/requirement.js';
import { Metrics } from './metrics.js';

/** For operators only, because metrics show how much is going on. */
@Controller('metrics')
export class MetricsController {
  constructor(private readonly metrics: Metrics) {}

  @Requires('admin')
  @Get()
  @Header('content-type', Registry.PROMETHEUS_CONTENT_TYPE)
  scrape(): Promise<string> {
    return this.metrics.text();
  }
}
