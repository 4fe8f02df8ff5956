ALTER TABLE "instances" ADD COLUMN "sealed_relay_token" text;--> statement-breakpoint
ALTER TABLE "instances" ADD COLUMN "relay_token_hash" "bytea";--> statement-breakpoint
CREATE UNIQUE INDEX "instances_relay_token" ON "instances" USING btree ("relay_token_hash") WHERE relay_token_hash IS NOT NULL;